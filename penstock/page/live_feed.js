// What the server does, as it says it at `GET /live/events`. In: an admin key, or "". Out: updates, one after the
// other, over any number of connections. Not known here: the page.
import { Connection } from "./connection.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;

export class Feed {
  #connection = null;
  #wake = () => {};

  /**
   * Watch, for ever, or until the server refuses. Call `update({kind, ...data})` with kind "snapshot" or "change",
   * and `lost(message)` when there is no connection; it comes back by itself. Return `{status, message}` of a
   * refusal that only a key can change.
   */
  async watch(key, { update, lost }) {
    const headers = key === "" ? {} : { Authorization: `Bearer ${key}` };
    for (let wait = FIRST_WAIT_MS; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      this.#connection = new Connection();
      try {
        const response = await this.#connection.ask("live/events", { headers });
        if (response.status !== 200) {
          const message = (await response.json().catch(() => ({}))).detail ?? "The server refuses to be watched.";
          if ([401, 403].includes(response.status)) return { status: response.status, message };
          lost(message);
        } else {
          for await (const { type, data } of this.#connection.events(response)) {
            wait = FIRST_WAIT_MS / 2;
            update({ kind: type, ...JSON.parse(data) });
          }
          lost("The server has ended the connection.");
        }
      } catch {
        lost("The server cannot be reached.");
      }
      await this.#pause(wait);
    }
  }

  /** Cut the connection, or end the wait for the next one. */
  again() {
    this.#connection?.close();
    this.#wake();
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, milliseconds);
    });
  }
}
