// Embed pictures and words by a running server, and print how near they are. Node 18 or newer, no packages.
//
//     python -m serve
//     node examples/javascript/embed.mjs 'dog face' examples/images/dog-face.png examples/images/rocket.png
//
// DIGPT_URL names another server than http://127.0.0.1:8000.

import { readFile } from "node:fs/promises";
import { basename } from "node:path";

const server = process.env.DIGPT_URL ?? "http://127.0.0.1:8000";
const [words, ...paths] = process.argv.slice(2);
if (!paths.length) fail("usage: node embed.mjs WORDS PICTURE...");

const form = new FormData();
form.append("texts", words);
for (const path of paths) {
  const data = await readFile(path).catch((error) => fail(error.message));
  form.append("files", new Blob([data]), basename(path));
}

const response = await fetch(`${server}/embed`, { method: "POST", body: form }).catch((error) =>
  fail(`${server} does not answer (${error.cause?.code ?? error.message}); start it: python -m serve`),
);
const answer = await response.json();
if (!response.ok) fail(answer.error.message);

// Pictures come first, in their order, then texts. Embeddings have length 1, so their product is their cosine.
const query = answer.data.at(-1).embedding;
console.log(`${answer.model}, ${answer.dim} numbers each`);
for (const [number, path] of paths.entries()) {
  const { embedding, error } = answer.data[number]; // one bad picture does not spoil the others
  const cosine = embedding?.reduce((sum, value, column) => sum + value * query[column], 0);
  console.log(`${error ? error.message : cosine.toFixed(4)}  ${basename(path)}`);
}

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(2);
}
