import createClient from "openapi-fetch";

export function createGateway(url, token, options = {}) {
  return createClient({ ...options, baseUrl: url, headers: { ...options.headers, Authorization: `Bearer ${token}` } });
}

export class GatewayError extends Error {
  constructor(message, status) {
    super(message);
    this.name = "GatewayError";
    this.status = status;
  }
}

export async function* follow(gateway, job, options = {}) {
  const path = { job_id: job };
  const { data, error, response } = await gateway.GET("/v1/jobs/{job_id}/events", { ...options, params: { path }, parseAs: "stream" });
  if (!response.ok) {
    throw new GatewayError(`job ${job}: ${error?.detail ?? "the gateway does not show it"}`, response.status);
  }
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

const FIRST_PAUSE = 200;
const LONGEST_PAUSE = 10_000;
const RETRY_FOR = 300_000;

export async function wait(gateway, job, options = {}) {
  const { retryFor = RETRY_FOR, ...rest } = options;
  let pause = FIRST_PAUSE;
  let heard = Date.now();
  for (;;) {
    let last;
    let failed = new GatewayError(`job ${job}: the stream ended before the job`, 0);
    try {
      for await (const status of follow(gateway, job, rest)) {
        last = status;
        heard = Date.now();
        pause = FIRST_PAUSE;
      }
    } catch (error) {
      const refused = error instanceof GatewayError && error.status < 500 && ![408, 429].includes(error.status);
      if (refused || rest.signal?.aborted) throw error;
      failed = error;
    }
    if (last && ENDED.has(last.state)) return last;
    if (Date.now() - heard > retryFor) throw failed;
    await new Promise((resolve) => setTimeout(resolve, pause));
    rest.signal?.throwIfAborted();
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}
