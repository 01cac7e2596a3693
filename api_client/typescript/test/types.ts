// Compiled and not run: right calls have types, and wrong ones are errors.
import { createGateway, wait, type JobStatus } from "../src/index.js";

const gateway = createGateway("http://127.0.0.1:8484", "token");

export async function right(): Promise<[string, number, JobStatus]> {
  const { data, error } = await gateway.POST("/v1/jobs/verify", { body: { bucket: "releases", key: "app.tgz" } });
  if (!data) throw new Error(String(error));
  const path = { bucket: "releases", key: "app.tgz" };
  const shown = await gateway.GET("/v1/artifacts/{bucket}/{key}", { params: { path } });
  return [data.job, shown.data?.size ?? 0, await wait(gateway, data.job)];
}

export async function wrong(): Promise<void> {
  // @ts-expect-error there is no such path
  await gateway.GET("/v1/artefacts", {});
  // @ts-expect-error the key is missing
  await gateway.POST("/v1/jobs/verify", { body: { bucket: "releases" } });
}
