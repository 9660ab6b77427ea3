// One message of a chat, as templates receive it.
export interface Message {
  readonly role: string;
  readonly content: string;
}
