// Shows the model's name and whether the server is ready. In: an element. Out: its text. It asks again
// every 2 seconds until the server is ready.

const AGAIN_MS = 2000;
let nextLook = 0;

/** Look at the server now. `named` is called with the model's name when it is known, and with the stage, if there is one. */
export async function watchServer(shown, named = () => {}) {
  clearTimeout(nextLook);
  try {
    const answers = [fetch("./", { headers: { Accept: "application/json" }, cache: "no-store" }), fetch("health/ready", { cache: "no-store" })];
    const [root, ready] = await Promise.all(answers);
    const { model, stage } = await root.json();
    shown.textContent = `${model} · ${ready.ok ? "ready" : "not ready yet"}`;
    named(model, stage);
    if (ready.ok) return;
  } catch {
    shown.textContent = "not reachable";
  }
  nextLook = setTimeout(() => watchServer(shown, named), AGAIN_MS);
}
