// Settings of `tandem doctor`.
import { boolean, defineConfig, secret, text } from "../../../services/common/config.ts";

export const doctorConfig = defineConfig(
  "doctor",
  {
    "router.url": text({
      optional: true,
      alias: "router",
      doc: "REST address of the router, such as http://127.0.0.1:3000. Left out: the `tandem up` of this user that was started last.",
    }),
    token: secret({ doc: "Join token of that router. Left out: that of the `tandem up` that runs there." }),
    probes: boolean({
      default: true,
      doc: "Send a small request of our own through each pair. --no-probes: report facts only.",
    }),
    json: boolean({ default: false, doc: "Print JSON, as RouterService.Diagnose gives it." }),
    verbose: boolean({ default: false, doc: "Show also what is fine." }),
    "state.dir": text({ optional: true, doc: "Folder of run files. Left out: ~/.local/state/tandem." }),
  },
  {
    summary:
      "Finds what is wrong with the instances of a router, alone and in pairs, and says what to do. Exit code 1 where something gives wrong answers or none.",
    usage: "tandem doctor [--json] [--verbose] [--router URL]",
  },
);
