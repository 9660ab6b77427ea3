// `tandem doctor`: asks a router to look at its instances and to send a probe through each pair.
import { toJsonString } from "@bufbuild/protobuf";
import { DiagnoseResponseSchema } from "#gen/tandem/router/v1/router_pb.js";
import { boolean, defineConfig, loadConfig } from "../../../services/common/config.ts";
import { routerClient } from "../../client/router.ts";
import { explained, findRouter, routerSettings } from "../router-target.ts";
import { hasError, renderDiagnoses } from "./report.ts";

export const doctorConfig = defineConfig(
  "doctor",
  {
    ...routerSettings,
    probes: boolean("probes", "Send a small probe request through each pair. --no-probes: report facts only.", {
      default: true,
    }),
    json: boolean("json", "Print the findings as JSON, as RouterService.Diagnose returns them.", { default: false }),
    verbose: boolean("verbose", "Also show what is fine.", { default: false }),
  },
  {
    summary:
      "Finds what is wrong with the instances of a router, alone and in pairs, and says what to do. Exits with 1 if an instance or a pair gives wrong answers, or no answers.",
    usage: "tandem doctor [--json] [--verbose] [--router URL]",
  },
);

export async function runDoctor(argv: readonly string[]): Promise<void> {
  const config = loadConfig(doctorConfig, { argv, env: process.env });
  const target = findRouter(config);
  const answer = await routerClient(target.url, target.token)
    .diagnose({ withoutProbes: !config.probes })
    .catch((error: unknown) => {
      throw explained(error, target);
    });
  const text = config.json
    ? toJsonString(DiagnoseResponseSchema, answer, { alwaysEmitImplicit: true, prettySpaces: 2 })
    : renderDiagnoses(answer.diagnoses, config.verbose);
  process.stdout.write(`${text}\n`);
  if (hasError(answer.diagnoses)) process.exitCode = 1;
}
