// `tandem doctor`: asks a router to look at its instances and to send a probe through each pair.
import { create, toJsonString } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { DiagnoseResponseSchema } from "#gen/tandem/router/v1/router_pb.js";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import { routerOverRest } from "../../control/client.ts";
import { findRouter } from "../find-router.ts";
import { explainRouterError } from "../router-error.ts";
import { doctorConfig } from "./config.ts";
import { hasError, renderReport } from "./report.ts";

export async function runDoctor(argv: readonly string[]): Promise<void> {
  const config = loadConfig(doctorConfig, { argv, env: process.env });
  const { url, token, runCount } = findRouter(config);
  try {
    const answer = await routerOverRest(url, { token }).diagnose({ withoutProbes: !config.probes });
    const text = config.json
      ? toJsonString(DiagnoseResponseSchema, create(DiagnoseResponseSchema, answer), {
          alwaysEmitImplicit: true,
          prettySpaces: 2,
        })
      : renderReport(answer.diagnoses, config.verbose);
    process.stdout.write(`${text}\n`);
    if (hasError(answer.diagnoses)) process.exitCode = 1;
  } catch (error) {
    throw error instanceof ConnectError ? new StartError(explainRouterError(error, url, runCount)) : error;
  }
}
