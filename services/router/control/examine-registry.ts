// The doctor's findings about Consul, the only registry that can be away or hold settings.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { FindingLevel, type FindingSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import type { RegistryStatusSchema } from "#gen/tandem/router/v1/router_pb.js";

type Finding = MessageInitShape<typeof FindingSchema>;

export function examineRegistry(status: MessageInitShape<typeof RegistryStatusSchema>): Finding[] {
  const { kind, address = "", up = false, error = "", settingsError = "" } = status;
  if (kind !== "consul") return [];
  const found: Finding[] = up
    ? [{ check: "registry", level: FindingLevel.OK, message: `Consul at ${address} answers.` }]
    : [
        {
          check: "registry",
          level: FindingLevel.WARNING,
          message: `${sentence(error)} The router goes on with the instances it knows, and finds no new ones.`,
          cure: "Check the Consul agent, its address (consul.address) and the policies of the token (docs/consul.md).",
        },
      ];
  if (settingsError !== "")
    found.push({
      check: "settings",
      level: FindingLevel.WARNING,
      message: `All settings in Consul are refused: ${sentence(settingsError)} The previous settings stay in force.`,
      cure: "Correct or delete the key (consul kv put, consul kv delete).",
    });
  return found;
}

function sentence(text: string): string {
  return text.replace(/\.?$/, ".");
}
