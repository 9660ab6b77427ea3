// The findings of the doctor as text: the worst first, each with its cure.
import { FindingLevel } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Diagnosis } from "#gen/tandem/router/v1/router_pb.js";

const WORDS: Readonly<Record<number, string>> = {
  [FindingLevel.ERROR]: "ERROR",
  [FindingLevel.WARNING]: "WARNING",
  [FindingLevel.UNKNOWN]: "unknown",
  [FindingLevel.OK]: "ok",
};

export function hasError(diagnoses: readonly Diagnosis[]): boolean {
  return diagnoses.some(({ finding }) => finding?.level === FindingLevel.ERROR);
}

/** @param verbose Also show what is fine. */
export function renderDiagnoses(diagnoses: readonly Diagnosis[], verbose: boolean): string {
  const shown = diagnoses
    .filter(({ finding }) => verbose || finding?.level !== FindingLevel.OK)
    .toSorted((a, b) => (b.finding?.level ?? 0) - (a.finding?.level ?? 0));
  const lines = shown.flatMap((diagnosis) => {
    const { finding } = diagnosis;
    if (finding === undefined) return [];
    const head = `${WORDS[finding.level] ?? "WARNING"}  ${[subject(diagnosis), finding.check].filter((part) => part !== "").join("  ")}`;
    return [
      head,
      `  ${finding.message}`,
      ...(finding.cure === "" || finding.level === FindingLevel.OK ? [] : [`  → ${finding.cure}`]),
    ];
  });
  const count = (level: FindingLevel): number => diagnoses.filter(({ finding }) => finding?.level === level).length;
  const sum = [
    `${count(FindingLevel.ERROR)} errors`,
    `${count(FindingLevel.WARNING)} warnings`,
    `${count(FindingLevel.UNKNOWN)} unknown`,
    `${count(FindingLevel.OK)} fine`,
  ].join(", ");
  return [...lines, ...(lines.length > 0 ? [""] : []), `${sum}.`].join("\n");
}

function subject({ prefillInstanceId, decodeInstanceId }: Diagnosis): string {
  return [prefillInstanceId, decodeInstanceId].filter((id) => id !== "").join(" with ");
}
