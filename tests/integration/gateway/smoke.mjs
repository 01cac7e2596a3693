// A client of the gateway in plain JavaScript: node smoke.mjs URL TOKEN. It prints one JSON document.
import { createHash } from "node:crypto";

const [gateway, token] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${token}` };
const content = Buffer.alloc(20_000_000, "artifact ");
const digest = createHash("sha256").update(content).digest("base64");

async function ask(method, path, more = {}) {
  const answer = await fetch(gateway + path, { method, ...more, headers: { ...headers, ...more.headers } });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return answer;
}

async function follow(job) {
  const answer = await ask("GET", `/v1/jobs/${job}/events`);
  const lines = [];
  for await (const text of answer.body.pipeThrough(new TextDecoderStream())) lines.push(text);
  const last = lines.join("").trim().split("\n\n").at(-1);
  if (!last.startsWith("event: end")) throw new Error(`no end: ${last}`);
  return JSON.parse(last.slice(last.indexOf("data: ") + 6));
}

const put = await ask("PUT", "/v1/objects/releases/from-node.bin", {
  body: content,
  headers: { "Repr-Digest": `sha-256=:${digest}:`, "Content-Type": "application/octet-stream" },
});
const uploaded = await follow((await put.json()).job);
const listed = await (await ask("GET", "/v1/artifacts?bucket=releases&prefix=from-")).json();
const got = await ask("GET", "/v1/objects/releases/from-node.bin");
const bytes = Buffer.from(await got.arrayBuffer());
const verify = await ask("POST", "/v1/jobs/verify", {
  body: JSON.stringify({ bucket: "releases", key: "from-node.bin" }),
  headers: { "Content-Type": "application/json" },
});
const verified = await follow((await verify.json()).job);
const refused = await fetch(`${gateway}/v1/artifacts?bucket=other`, { headers });
console.log(
  JSON.stringify({
    uploaded: uploaded.state,
    listed: listed.artifacts.map((each) => each.key),
    same: bytes.equals(content),
    verdicts: verified.result.copies.map((each) => each.verdict),
    refused: (await refused.json()).type,
  }),
);
