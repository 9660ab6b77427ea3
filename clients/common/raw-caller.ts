// HTTP/2 by hand, for callers that no client library would be: they send frames, and read only if asked to.
import { once } from "node:events";
import { type Socket, connect } from "node:net";
import { splitAddress } from "../../services/common/address.ts";
import { frame as message } from "../../services/rpc/deframer.ts";

export interface RawCaller {
  readonly socket: Socket;
  /** Opens stream `2 * index + 1` with a gRPC call. @param body A whole message; left out: none is sent. */
  call(index: number, path: string, body?: Buffer, headers?: Readonly<Record<string, string>>): void;
  /** The same with a message of which nothing but its announced length comes. */
  announce(index: number, path: string, bytes: number): void;
  reset(index: number): void;
  read(): void;
}

export const REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
export const WATCH = "/grpc.health.v1.Health/Watch";
export const CHECK = "/grpc.health.v1.Health/Check";
const SYMBOL = "tandem.router.v1.RouterService";
/** ServerReflectionRequest { file_containing_symbol }, which is answered with several long files. */
export const QUESTION = Buffer.from([0x22, SYMBOL.length, ...Buffer.from(SYMBOL)]);

/** Never reads until `read` is called. @param window Bytes that the server may send on a stream. */
export async function rawCaller(address: string, window = 65_535): Promise<RawCaller> {
  const socket = connect(splitAddress(address));
  socket.on("error", () => {});
  socket.pause();
  await once(socket, "connect");
  const settings = Buffer.alloc(6);
  settings.writeUInt16BE(4, 0); // SETTINGS_INITIAL_WINDOW_SIZE
  settings.writeUInt32BE(window, 2);
  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  const acknowledged = h2(4, 1, 0, Buffer.alloc(0));
  // All streams together may get a gigabyte.
  const wide = h2(8, 0, 0, Buffer.from([0x3f, 0, 0, 0]));
  socket.write(Buffer.concat([preface, h2(4, 0, 0, settings), acknowledged, wide]));
  const open = (index: number, path: string, data: Buffer, headers: Readonly<Record<string, string>>): void => {
    const fields = {
      ":method": "POST",
      ":scheme": "http",
      ":path": path,
      ":authority": "x",
      "content-type": "application/grpc",
      te: "trailers",
      ...headers,
    };
    const head = Buffer.concat(Object.entries(fields).map(([name, value]) => literal(name, value)));
    const stream = 2 * index + 1;
    const frames = [h2(1, 4, stream, head), ...(data.length > 0 ? [h2(0, 0, stream, data)] : [])];
    socket.write(Buffer.concat(frames));
  };
  return {
    socket,
    call(index, path, body, headers = {}) {
      open(index, path, body === undefined ? Buffer.alloc(0) : message(body), headers);
    },
    announce(index, path, bytes) {
      const length = Buffer.alloc(5);
      length.writeUInt32BE(bytes, 1);
      open(index, path, length, {});
    },
    reset(index) {
      socket.write(h2(3, 0, 2 * index + 1, Buffer.from([0, 0, 0, 8])));
    },
    read() {
      socket.resume();
    },
  };
}

function h2(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** HPACK without table and Huffman; neither text may be longer than 126 bytes. */
function literal(name: string, value: string): Buffer {
  return Buffer.concat([
    Buffer.from([0, name.length]),
    Buffer.from(name),
    Buffer.from([value.length]),
    Buffer.from(value),
  ]);
}
