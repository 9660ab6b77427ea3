// One message of a chat, as every template gets it.
export interface Message {
  readonly role: string;
  readonly content: string;
}
