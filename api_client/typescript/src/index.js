import createClient from "openapi-fetch";

export function createGateway(url, token, options = {}) {
  return createClient({ ...options, baseUrl: url, headers: { ...options.headers, Authorization: `Bearer ${token}` } });
}

export async function* follow(gateway, job, options = {}) {
  const path = { job_id: job };
  const { data, error } = await gateway.GET("/v1/jobs/{job_id}/events", { ...options, params: { path }, parseAs: "stream" });
  if (error) throw new Error(`job ${job}: ${error.detail ?? "the gateway does not show it"}`);
  let rest = "";
  for await (const text of data.pipeThrough(new TextDecoderStream())) {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((each) => each.startsWith("data: "));
      if (line) yield JSON.parse(line.slice("data: ".length));
    }
  }
}

const ENDED = new Set(["succeeded", "failed", "dead", "cancelled", "refused"]);

export async function wait(gateway, job, options = {}) {
  for (;;) {
    let last;
    for await (const status of follow(gateway, job, options)) last = status;
    if (last && ENDED.has(last.state)) return last;
  }
}
