// Which deployment a process belongs to: one router or several, with their instances. What several deployments share, a
// Consul or a machine, tells them apart by this name.
import { text } from "./config.ts";

const NAME = /^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;

/** A setting of every process of a deployment, with the same value: router, prefill, decode. */
export const deploymentName = {
  ...text(
    "deployment.name",
    "Name of the deployment. Deployments of different names can share a Consul: none lists or dials instances of another. The same on every process.",
    { default: "default", alias: "name" },
  ),
  // A label of DNS: Consul has it as a tag, and in the path of settings.
  expected: "1 to 63 letters, digits and hyphens",
  parse(written: string | readonly string[]): string {
    if (typeof written !== "string" || !NAME.test(written)) throw new Error("it is not a name");
    return written;
  },
};
