// Which deployment a process belongs to: one router or several, with their instances. Deployments that share a
// Consul or a machine are told apart by this name.
import { text } from "./config.ts";

/** A DNS label: Consul uses the name as a tag, and in the path of settings. */
export const DEPLOYMENT_NAME = /^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;

/** A setting of every process of a deployment, with the same value: router, prefill, decode. */
export const deploymentName = {
  ...text(
    "deployment.name",
    "Name of the deployment. Must be the same on every process of the deployment. Deployments of different names can share a Consul: none lists or dials instances of another.",
    { default: "default", alias: "name" },
  ),
  expected: "1 to 63 letters, digits and hyphens",
  parse(written: string | readonly string[]): string {
    if (typeof written !== "string" || !DEPLOYMENT_NAME.test(written)) throw new Error("it is not a name");
    return written;
  },
};
