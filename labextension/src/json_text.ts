/** JSON with lines and spaces between its tokens. The tokens stay what they are in the file. */

const STEP = '  ';
/** Deeper levels are not indented more: a file may have a hundred thousand. */
const MAX_INDENT = 20;
const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g;

/**
 * Return JSON as a person reads it, up to about ``limit`` characters.
 *
 * Written from its parsed value it would be another text: large numbers lose digits, and of keys that
 * are there twice one is gone.
 */
export function indentJson(text: string, limit: number): string {
  let out = '';
  let depth = 0;
  let isEmpty = false;
  const newLine = (): void => {
    out += `\n${STEP.repeat(Math.min(depth, MAX_INDENT))}`;
  };
  for (const [token] of text.matchAll(TOKEN)) {
    if (out.length > limit) {
      break;
    }
    const closes = token === '}' || token === ']';
    depth -= closes ? 1 : 0;
    // An empty list or object stays on its line.
    if (closes ? !isEmpty : isEmpty) {
      newLine();
    }
    isEmpty = token === '{' || token === '[';
    depth += isEmpty ? 1 : 0;
    out += token === ':' ? ': ' : token;
    if (token === ',') {
      newLine();
    }
  }
  return out;
}
