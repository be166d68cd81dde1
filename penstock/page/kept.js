// What survives a reload: the stream under way. In: what is needed to show and read it again. Out: the
// same, after a reload of this tab. Nothing is kept of a stream that came to its end.

const KEY = "penstock.running";

/** Remember the stream under way: `{id, mode, asked, messages, limit}`. */
export function keep(run) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(run));
  } catch {
    // Storage is full or forbidden: then a reload forgets the stream, as it forgets all else.
  }
}

export function forget() {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // There is nothing to forget.
  }
}

/** What was kept, or null. */
export function recall() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}
