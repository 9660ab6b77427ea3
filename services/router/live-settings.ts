// Settings that operators change while the router runs: policies, limits and timeouts. Everyone reads them through one
// view, once a request; a change takes effect with the next one.
import { overlayConfig, settingsOf, type Setting } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import type { Metrics } from "../common/metrics.ts";
import { routerConfig, type RouterConfig } from "./config.ts";
import { policyOf, type Policy } from "./placement/policies.ts";

/** What may change. Everything else is read once, at the start. */
export const CHANGEABLE = [
  "prefill.policy",
  "decode.policy",
  "admission.limit",
  "legs.limit",
  "queue.limit",
  "queue.timeout_ms",
  "request.deadline_ms",
  "prefill.timeout_ms",
  "stall_ms",
  "retry.limit",
] as const satisfies readonly (keyof RouterConfig)[];

export interface LiveSettings {
  /** In force now. Replaced as a whole. */
  readonly config: RouterConfig;
  readonly policies: { readonly prefill: Policy; readonly decode: Policy };
  readonly settings: readonly Setting[];
  /** Why the last change was not taken. Empty where it was. */
  readonly refusal: string;
  /**
   * Takes all of `texts` or none.
   *
   * @param source Where they came from, before the key: `consul tandem/config/`.
   */
  apply(texts: ReadonlyMap<string, string>, source: string): void;
}

/** @param onChange After a change was taken. */
export function createLiveSettings(
  base: RouterConfig,
  o: { log: Log; metrics: Metrics; onChange(): void },
): LiveSettings {
  const changes = o.metrics.counter(
    "tandem_settings_changes_total",
    "Changes of settings while the router ran, by what became of them.",
    ["outcome"],
  );
  let config = base;
  let policies = { prefill: policyOf(base["prefill.policy"]), decode: policyOf(base["decode.policy"]) };
  let refusal = "";

  return {
    get config() {
      return config;
    },
    get policies() {
      return policies;
    },
    get settings() {
      return settingsOf(config);
    },
    get refusal() {
      return refusal;
    },
    apply(texts, source) {
      let next: RouterConfig;
      try {
        next = overlayConfig(routerConfig, base, texts, {
          changeable: CHANGEABLE,
          originOf: (key) => `${source}${key}`,
        });
      } catch (error) {
        refusal = (error as Error).message;
        changes.inc({ outcome: "refused" });
        o.log.error("changed settings are refused; those from before stay in force", { source, because: refusal });
        return;
      }
      refusal = "";
      const changed = CHANGEABLE.filter((key) => next[key] !== config[key]);
      // A policy has a memory: it is kept unless it changes.
      policies = {
        prefill: changed.includes("prefill.policy") ? policyOf(next["prefill.policy"]) : policies.prefill,
        decode: changed.includes("decode.policy") ? policyOf(next["decode.policy"]) : policies.decode,
      };
      config = next;
      if (changed.length === 0) return;
      changes.inc({ outcome: "taken" });
      for (const key of changed) {
        const { value, origin } = settingsOf(config).find((setting) => setting.key === key)!;
        o.log.info("setting changed", { setting: key, value, origin });
      }
      o.onChange();
    },
  };
}
