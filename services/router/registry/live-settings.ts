// Settings that change while the router runs, as texts from a registry's key-value store. Whoever reads a `Live` section
// sees a change from its next decision on.
import { settingLines, type Settings } from "../../common/config.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";

export interface LiveSettings {
  /** Why the last change was not taken. Empty where it was. */
  readonly refusal: string;
  /**
   * Takes all of `texts` or none.
   *
   * @param source Where they came from, before the key: `consul tandem/config/`.
   */
  apply(texts: ReadonlyMap<string, string>, source: string): void;
}

/** @param o.onChange After a change was taken. */
export function liveSettings(
  settings: Settings,
  o: { readonly log: Log; readonly metrics: Metrics; onChange(): void },
): LiveSettings {
  const changes = o.metrics.counter(
    "tandem_settings_changes_total",
    "Changes of settings while the router ran, by what became of them.",
    ["outcome"],
  );
  let refusal = "";
  return {
    get refusal() {
      return refusal;
    },
    apply(texts, source) {
      try {
        const changed = settings.change(texts, source);
        refusal = "";
        if (changed.length === 0) return;
        changes.inc({ outcome: "taken" });
        o.log.info("settings changed", { settings: settingLines(changed) });
        o.onChange();
      } catch (error) {
        refusal = (error as Error).message;
        changes.inc({ outcome: "refused" });
        o.log.error("changed settings are refused; those from before stay in force", { source, because: refusal });
      }
    },
  };
}
