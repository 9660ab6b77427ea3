// Callers on a gRPC port who prove nothing: silent connections, one that talks nonsense, and one that asks a lot of what
// anybody may ask and never reads the answers.
import { connect as connectHttp2 } from "node:http2";
import { connect, type Socket } from "node:net";
import { splitAddress } from "../../services/common/address.ts";

const SILENT = 50;
const QUESTIONS = 400;
const REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
/** A gRPC message: uncompressed, 2 bytes, `list_services: ""`. */
const LIST_SERVICES = Buffer.from([0, 0, 0, 0, 2, 0x3a, 0]);

export function visit(grpcAddress: string): { leave(): void } {
  const { host, port } = splitAddress(grpcAddress);
  const sockets: Socket[] = Array.from({ length: SILENT }, () => connect(port, host));
  const babbler = connect(port, host);
  babbler.write(Buffer.alloc(4_096, "GET / nonsense\r\n"));
  const session = connectHttp2(`http://${host}:${port}`);
  session.on("error", () => {});
  for (let count = 0; count < QUESTIONS; count++) {
    const headers = { ":method": "POST", ":path": REFLECTION, "content-type": "application/grpc", te: "trailers" };
    const stream = session.request(headers);
    // Not one answer is read.
    stream.pause();
    stream.on("error", () => {});
    for (let question = 0; question < 8; question++) stream.write(LIST_SERVICES);
  }
  for (const socket of [...sockets, babbler]) socket.on("error", () => {});
  return {
    leave() {
      for (const socket of [...sockets, babbler]) socket.destroy();
      session.destroy();
    },
  };
}
