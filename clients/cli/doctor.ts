// `tandem doctor`: asks a router to look at its instances and to send a probe through each pair.
import { toJsonString } from "@bufbuild/protobuf";
import { FindingLevel } from "#gen/tandem/instance/v1/instance_pb.js";
import { DiagnoseResponseSchema, type DiagnoseResponse, type Diagnosis } from "#gen/tandem/router/v1/router_pb.js";
import { boolean, defineConfig, loadConfig } from "../../services/common/config.ts";
import { withRouter, type RouterCalls } from "./router-calls.ts";
import { explained, findRouter, routerSettings } from "./router-target.ts";

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
    removed: { canaries: "give --no-probes" },
  },
);

export async function runDoctor(argv: readonly string[]): Promise<void> {
  const config = loadConfig(doctorConfig, { argv, env: process.env });
  const target = findRouter(config);
  const ask = (router: RouterCalls): Promise<DiagnoseResponse> => router.diagnose({ withoutProbes: !config.probes });
  const answer = await withRouter(target, ask).catch((error: unknown) => {
    throw explained(error, target);
  });
  const text = config.json
    ? toJsonString(DiagnoseResponseSchema, answer, { alwaysEmitImplicit: true, prettySpaces: 2 })
    : renderDiagnoses(answer.diagnoses, config.verbose);
  process.stdout.write(`${text}\n`);
  if (hasError(answer.diagnoses)) process.exitCode = 1;
}

/** The word of each level before a finding, and in the sum. */
const LEVELS = [
  [FindingLevel.ERROR, "ERROR", "errors"],
  [FindingLevel.WARNING, "WARNING", "warnings"],
  [FindingLevel.UNKNOWN, "unknown", "unknown"],
  [FindingLevel.OK, "ok", "fine"],
] as const;

export function hasError(diagnoses: readonly Diagnosis[]): boolean {
  return diagnoses.some(({ finding }) => finding?.level === FindingLevel.ERROR);
}

/** The worst first, each with its cure. @param verbose Also show what is fine. */
export function renderDiagnoses(diagnoses: readonly Diagnosis[], verbose: boolean): string {
  const lines = diagnoses
    .filter(({ finding }) => verbose || finding?.level !== FindingLevel.OK)
    .toSorted((a, b) => (b.finding?.level ?? 0) - (a.finding?.level ?? 0))
    .flatMap(({ finding, prefillInstanceId, decodeInstanceId }) => {
      if (finding === undefined) return [];
      const { level, check, message, cure } = finding;
      const word = LEVELS.find(([one]) => one === level)?.[1] ?? "WARNING";
      const subject = [prefillInstanceId, decodeInstanceId].filter((id) => id !== "").join(" with ");
      const head = [word, subject, check].filter((part) => part !== "").join("  ");
      return [head, `  ${message}`, ...(cure === "" || level === FindingLevel.OK ? [] : [`  → ${cure}`])];
    });
  const count = (level: FindingLevel): number => diagnoses.filter(({ finding }) => finding?.level === level).length;
  const sum = LEVELS.map(([level, , word]) => `${count(level)} ${word}`).join(", ");
  return [...lines, ...(lines.length > 0 ? [""] : []), `${sum}.`].join("\n");
}
