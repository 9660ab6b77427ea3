// Settings that change while the router runs. They arrive as texts from a registry's key-value store. Code that reads a
// `Live` section sees a change from its next decision on.
import { settingLines, type Settings } from "../../common/config.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";

export interface LiveSettings {
  /** Why the last change was refused. Empty if it was accepted. */
  readonly refusal: string;
  /**
   * Applies all of `texts` or none.
   *
   * @param source The origin of the texts, written before each key: `consul tandem/config/`.
   */
  apply(texts: ReadonlyMap<string, string>, source: string): void;
}

/** @param o.onChange Called after a change was applied. */
export function liveSettings(
  settings: Settings,
  o: { readonly log: Log; readonly metrics: Metrics; onChange(): void },
): LiveSettings {
  const changes = o.metrics.counter(
    "tandem_settings_changes_total",
    "Changes of settings while the router ran, by outcome.",
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
        o.log.error("changed settings are refused; the previous ones stay in force", { source, because: refusal });
      }
    },
  };
}
