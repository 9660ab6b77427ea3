// One thing that was checked, and the result.

export type FindingLevel = "ok" | "unknown" | "warning" | "error";

export interface Finding {
  /** `cuda_graphs` */
  readonly check: string;
  readonly level: FindingLevel;
  readonly message: string;
  /** Empty where nothing is to be done. */
  readonly cure: string;
}

export function finding(check: string, level: FindingLevel, message: string, cure = ""): Finding {
  return { check, level, message, cure };
}
