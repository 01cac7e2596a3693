// node smoke.mjs URL TOKEN: use a gateway through the typed client. It prints one JSON document.
import { createHash } from "node:crypto";
import { createGateway, follow, GatewayError, wait } from "../src/index.js";

const [url, token] = process.argv.slice(2);
const gateway = createGateway(url, token);
const content = Buffer.alloc(3_000_000, "artifact ");
const path = { bucket: "releases", key: "from typescript/ä.bin" };
const digest = createHash("sha256").update(content).digest("base64");

const sent = await gateway.PUT("/v1/objects/{bucket}/{key}", {
  params: { path },
  body: content,
  bodySerializer: (body) => body,
  headers: { "Repr-Digest": `sha-256=:${digest}:`, "Content-Type": "application/octet-stream" },
});
if (!sent.data) throw new Error(JSON.stringify(sent.error));
const states = [];
for await (const status of follow(gateway, sent.data.job)) states.push(status.state);
const shown = await gateway.GET("/v1/artifacts/{bucket}/{key}", { params: { path } });
const got = await gateway.GET("/v1/objects/{bucket}/{key}", { params: { path }, parseAs: "arrayBuffer" });
const asked = await gateway.POST("/v1/jobs/verify", { body: path });
const verified = await wait(gateway, asked.data.job);
const again = await gateway.POST("/v1/jobs/verify", { body: path });
let streams = 0;
const breaking = createGateway(url, token, {
  fetch: async (request) => {
    if (!request.url.endsWith("/events")) return fetch(request);
    streams += 1;
    if (streams === 1) return new Response(new ReadableStream({ pull: (it) => it.error(new TypeError("terminated")) }));
    if (streams === 2) throw new TypeError("fetch failed");
    if (streams === 3) return Response.json({ detail: "busy" }, { status: 503 });
    if (streams === 4) return new Response("event: progress\ndata: {\"state\": \"running\"}\n\nevent: progr");
    return fetch(request);
  },
});
const resumed = await wait(breaking, again.data.job);
const unknown = await wait(gateway, "00000000-0000-0000-0000-000000000000").catch((error) => error);
const refused = await gateway.GET("/v1/artifacts", { params: { query: { bucket: "other" } } });
console.log(
  JSON.stringify({
    end: states.at(-1),
    size: shown.data.size,
    same: Buffer.from(got.data).equals(content),
    verdicts: verified.result.copies.map((each) => each.verdict),
    resumed: [resumed.state, streams],
    unknown: unknown instanceof GatewayError && unknown.status,
    refused: refused.error.type,
  }),
);
