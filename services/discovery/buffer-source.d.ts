// A type of the DOM that @msgpack/msgpack's declarations name and Node's types leave out.
declare type BufferSource = ArrayBufferView | ArrayBuffer;
