// What the server does, as it says it at `GET /live/events`. In: an admin key, or "". Out: updates, one after the
// other, over any number of connections. Not known here: the page.
import { Connection, Server } from "./client/connection.js";

const SILENCE_MS = 15_000; // an update comes at least every second
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
    const server = new Server({ url: new URL(".", location.href).href, key, fetch: (...asked) => fetch(...asked) });
    for (let wait = FIRST_WAIT_MS; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      const connection = (this.#connection = new Connection(server));
      try {
        const response = await connection.open("live/events", {}, SILENCE_MS);
        if (response.status !== 200) {
          const message = (await response.json().catch(() => ({}))).detail ?? "The server refuses to be watched.";
          if ([401, 403].includes(response.status)) return { status: response.status, message };
          lost(message);
        } else {
          for (let events; (events = await connection.read(SILENCE_MS)) !== null; ) {
            for (const { type, data } of events) update({ kind: type, ...JSON.parse(data) });
            wait = FIRST_WAIT_MS / 2;
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
