// Consul's refusals, by class, with the policy rule that the token lacks, if any.
import type { Log } from "../common/log.ts";

/**
 * `away`: no agent answers, or it has no leader to ask. `denied`: the token may not do this; `policy` is the rule that
 * would allow it. `unknown`: the agent does not know the service or check. `refused`: any other refusal.
 */
export class ConsulError extends Error {
  override readonly name = "ConsulError";
  readonly kind: "away" | "denied" | "unknown" | "refused";
  readonly policy: string | undefined;

  constructor(kind: ConsulError["kind"], message: string, o: { policy?: string | undefined; cause?: unknown } = {}) {
    super(message, { cause: o.cause });
    this.kind = kind;
    this.policy = o.policy;
  }
}

export function asConsulError(thrown: unknown): ConsulError {
  if (thrown instanceof ConsulError) return thrown;
  return new ConsulError("refused", (thrown as Error).message, { cause: thrown });
}

const EVENTS: Readonly<Record<ConsulError["kind"], string>> = {
  away: "Consul is away",
  denied: "Consul denies what this process needs",
  refused: "Consul refuses what this process asks",
  unknown: "Consul has forgotten this process",
};

/** Logs each fault once, until all is well again. @param consequence What continues meanwhile. */
export function consulFailureLog(
  log: Log,
  consul: string,
  consequence: string,
): { failed(error: ConsulError, of: Readonly<Record<string, string>>): void; well(): void } {
  const logged = new Set<string>();
  return {
    failed({ kind, message: because, policy }, of) {
      const fields = { consul, ...of, because, ...(policy === undefined ? {} : { policy }) };
      if (!logged.has(policy ?? kind))
        log[kind === "denied" ? "error" : "warn"](`${EVENTS[kind]}; ${consequence}`, fields);
      logged.add(policy ?? kind);
    },
    well: () => logged.clear(),
  };
}

/** An answer with a status that is not 2xx. Older agents answer 500 for a check that they do not know. */
export function refusalError(status: number, text: string): ConsulError {
  if (status === 403 || /permission denied|acl not found/i.test(text)) return deniedError(text);
  const message = `Consul answers ${status}: ${text || "no reason given"}`;
  if (status === 404 || /unknown (check|service)|does not have associated TTL/i.test(text))
    return new ConsulError("unknown", message);
  return new ConsulError(status >= 500 ? "away" : "refused", message);
}

/**
 * From Consul's own words, such as: Permission denied: token with AccessorID '...' lacks permission 'service:write' on
 * "tandem-decode".
 */
function deniedError(text: string): ConsulError {
  if (/acl not found/i.test(text)) {
    return new ConsulError(
      "denied",
      "Consul doesn't know the token (ACL not found): it was deleted, or belongs to another cluster.",
    );
  }
  const lack = /lacks permission '([a-z]+):([a-z]+)'(?: on "([^"]*)")?/.exec(text);
  if (lack === null) return new ConsulError("denied", `Consul denies permission: ${text || "no reason given"}`);
  const [, resource, access, name = ""] = lack;
  return lacksPolicy(`${resource} "${name}" { policy = "${access}" }`);
}

/** @param consequence What Consul does without it, where it doesn't refuse. */
export function lacksPolicy(policy: string, consequence = ""): ConsulError {
  return new ConsulError(
    "denied",
    `The Consul token lacks the policy ${policy}${consequence} (docs/consul.md lists what Tandem needs).`,
    { policy },
  );
}
