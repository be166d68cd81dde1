// Runs reader.js as a program: node main.js CLIENT JSON. Prints one line of JSON for each call of `tell`.
import { argv } from "node:process";
import { read } from "./reader.js";

const [client, asked] = argv.slice(2);
await read(await import(client), JSON.parse(asked), (told) => console.log(JSON.stringify(told)));
