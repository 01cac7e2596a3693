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

/** Wait for the end of a job, whatever it is, and return its state. */
export function wait(gateway: Gateway, job: string, options?: { signal?: AbortSignal }): Promise<JobStatus>;
