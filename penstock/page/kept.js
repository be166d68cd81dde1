// Keeps the running stream across a reload. In: the data to show the stream and to read it again. Out:
// the same data after a reload of this tab. An ended stream is not kept.

const KEY = "penstock.running";

/** Keep the running stream: `{id, mode, asked, messages, limit}`. */
export function keep(run) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(run));
  } catch {
    // Storage is full or forbidden, so a reload loses the stream.
  }
}

export function forget() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // Storage is forbidden, so it holds nothing.
  }
}

/** Return the kept stream, or null. */
export function recall() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}
