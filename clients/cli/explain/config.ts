// Settings of `tandem explain`.
import { boolean, defineConfig, secret, text } from "../../../services/common/config.ts";

export const explainConfig = defineConfig(
  "explain",
  {
    request: text({
      optional: true,
      doc: "x-request-id of the answer, or the id that the client sent. The same as ID.",
    }),
    "router.url": text({
      optional: true,
      alias: "router",
      doc: "REST address of the router, such as http://127.0.0.1:3000. Left out: the `tandem up` of this user that was started last.",
    }),
    token: secret({ doc: "Join token of that router. Left out: that of the `tandem up` that runs there." }),
    json: boolean({ default: false, doc: "Print JSON, the receipt as RouterService.GetReceipt gives it." }),
    "state.dir": text({ optional: true, doc: "Folder of run files. Left out: ~/.local/state/tandem." }),
  },
  {
    summary: "Tells what became of one request: where it ran, what was tried again, where the time went.",
    usage: "tandem explain ID [--json] [--router URL]",
  },
);
