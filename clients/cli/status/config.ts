// Settings of `tandem status`.
import { boolean, defineConfig, secret, text } from "../../../services/common/config.ts";

export const statusConfig = defineConfig(
  "status",
  {
    "router.url": text({
      optional: true,
      alias: "router",
      doc: "REST address of the router, such as http://127.0.0.1:3000. Left out: the `tandem up` of this user that was started last.",
    }),
    token: secret({ doc: "Join token of that router. Left out: that of the `tandem up` that runs there." }),
    json: boolean({ default: false, doc: "Print JSON, the instances as RouterService.ListInstances gives them." }),
    watch: boolean({ default: false, doc: "Print again after every change, until Ctrl-C." }),
    "state.dir": text({ optional: true, doc: "Folder of run files. Left out: ~/.local/state/tandem." }),
  },
  { summary: "Shows the instances that a router sees.", usage: "tandem status [--json] [--watch] [--router URL]" },
);
