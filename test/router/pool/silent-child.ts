// Run by silence.test.ts in a process of its own, to be stopped: a decode instance that beats its heart and answers no leg.
import { toJson } from "@bufbuild/protobuf";
import { InfoSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import { startDecode } from "../support/fake-instance.ts";

process.stdin.resume().once("close", () => process.exit()); // The test is gone.
const decode = await startDecode({ instanceId: process.argv[2]! });
let running = 0;
setInterval(() => decode.load({ running: (running = 1 - running) }), 200); // Each one is news.
process.stdout.write(`${JSON.stringify(toJson(InfoSchema, decode.info))}\n`);
