import type { Client, ClientOptions } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type { components, paths };
export type Gateway = Client<paths>;
/** The state of a job, its progress, and its result or error. */
export type JobStatus = components["schemas"]["StatusResult"];

/** Return a client of a gateway; every path, parameter, body and answer has its type. */
export function createGateway(url: string, token: string, options?: Omit<ClientOptions, "baseUrl">): Gateway;

/** Yield the state of a job at each change, until its end. Throws if the gateway does not show the job. */
export function follow(gateway: Gateway, job: string, options?: { signal?: AbortSignal }): AsyncGenerator<JobStatus>;

/** The gateway does not show a job; `status` is that of its answer, or 0 if a stream ended too early. */
export class GatewayError extends Error {
  status: number;
}

/**
 * Wait for the end of a job, whatever it is, and return its state.
 *
 * A stream that breaks, and a gateway that is away or busy, are asked again with pauses of up to 10 s.
 * Throws the last error after `retryFor` milliseconds without an answer, 300,000 by default, and at once if the token
 * may not see the job or there is none.
 */
export function wait(
  gateway: Gateway,
  job: string,
  options?: { signal?: AbortSignal; retryFor?: number },
): Promise<JobStatus>;
