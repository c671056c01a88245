/** Decode token ids to text, like the `tokenizers` library with the same `tokenizer.json`. */

interface AddedToken {
  id: number;
  content: string;
  special: boolean;
}

interface Decoder {
  type: string;
  prefix?: string;
  cleanup?: boolean;
  pattern?: { Regex?: string; String?: string };
  content?: string;
  decoders?: Decoder[];
}

export interface TokenizerFile {
  added_tokens?: AddedToken[];
  decoder?: Decoder | null;
  model: { type: string; vocab: Record<string, number> };
}

type Step = (tokens: string[]) => string[];

export class Tokenizer {
  private readonly words = new Map<number, string>();
  private readonly special = new Set<number>();
  private readonly steps: Step;

  /** @throws Error if `file` has unsupported parts, rather than decoding differently. */
  constructor(file: TokenizerFile) {
    const vocabulary = file.model?.vocab;
    if (typeof vocabulary !== "object" || vocabulary === null || Array.isArray(vocabulary)) {
      throw new Error(`tokenizer.json: no words in a model of type ${file.model?.type}`);
    }
    for (const [word, id] of Object.entries(vocabulary)) this.words.set(id, word);
    for (const token of file.added_tokens ?? []) {
      this.words.set(token.id, token.content);
      if (token.special) this.special.add(token.id);
    }
    this.steps = file.decoder ? build(file.decoder) : (tokens) => [tokens.join(" ")];
  }

  /** The text of `ids` without special tokens. */
  decode(ids: Iterable<number>): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const word = this.words.get(id);
      if (word !== undefined && !this.special.has(id)) tokens.push(word);
    }
    return this.steps(tokens).join("");
  }
}

function build(decoder: Decoder): Step {
  switch (decoder.type) {
    case "Sequence": {
      const steps = (decoder.decoders ?? []).map(build);
      return (tokens) => steps.reduce((parts, step) => step(parts), tokens);
    }
    case "Fuse":
      return (tokens) => [tokens.join("")];
    case "Replace":
      return replace(decoder);
    case "WordPiece":
      return wordPiece(decoder);
    default:
      throw new Error(`tokenizer.json: a decoder of type ${decoder.type} is not known to this page`);
  }
}

function replace({ pattern, content = "" }: Decoder): Step {
  const { Regex, String: text } = pattern ?? {};
  if (text !== undefined) return (tokens) => tokens.map((token) => token.replaceAll(text, () => content));
  const expression = new RegExp(Regex ?? "", "gu");
  return (tokens) => tokens.map((token) => token.replace(expression, () => content));
}

/** A space before each token, except the first one and those that continue a word. */
function wordPiece({ prefix = "##", cleanup }: Decoder): Step {
  if (cleanup) throw new Error("tokenizer.json: the clean-up of a WordPiece decoder is not known to this page");
  return (tokens) =>
    tokens.map((token, place) => {
      if (place === 0) return token;
      return token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
    });
}
