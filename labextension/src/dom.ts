/**
 * The only place that makes elements. Texts become text nodes; nothing here reads markup, so a
 * file named `<img onerror=…>` is shown with these letters.
 */

export type Child = Node | string | null | false;

export interface Options {
  readonly class?: string;
  readonly attributes?: Readonly<Record<string, string>>;
  readonly click?: (event: MouseEvent) => void;
  readonly look?: Look;
}

/**
 * Characters that nobody sees, that turn others round, or that look like a space:
 * ``invoice\u202efdp.exe``.
 */
const HIDDEN =
  /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Default_Ignorable_Code_Point}\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u2800\u3000\u{e0000}-\u{e007f}]/gu;

function escapeOne(it: string): string {
  const code = (it.codePointAt(0) ?? 0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, '0')}`;
}

/** Texts are shown in the order of their characters; line ends and tabs stay what they are. */
export function escapeHidden(text: string): string {
  return text.replace(HIDDEN, it => (it === '\n' || it === '\t' ? it : escapeOne(it)));
}

/** The name of a file, on one line, and unlike that of any other file. */
export function showName(name: string): string {
  return name
    .replaceAll('\\', '\\\\')
    .replaceAll('␣', '\\u2423') // only this function writes it
    .replaceAll('\n', '\\n')
    .replaceAll('\t', '\\t')
    .replace(/^ +| +$| {2,}/g, spaces => '␣'.repeat(spaces.length));
}

/** What names have in common that a person, or another file system, takes for the same. */
export function likeness(name: string): string {
  return name.normalize('NFKC').toLowerCase().toUpperCase().normalize('NFKC'); // ß is ss, ς is σ
}

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  ...parts: readonly (Options | Child)[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const part of parts) {
    if (typeof part !== 'object' || part === null || 'nodeType' in part) {
      append(node, [part]);
      continue;
    }
    node.className = part.class ?? '';
    for (const [name, value] of Object.entries(part.attributes ?? {})) {
      node.setAttribute(name, escapeHidden(value));
    }
    if (part.click !== undefined) {
      node.addEventListener('click', part.click as EventListener);
    }
  }
  return node;
}

export function append(node: Element, children: readonly Child[]): void {
  for (const child of children) {
    if (child !== null && child !== false) {
      node.append(typeof child === 'string' ? escapeHidden(child) : child);
    }
  }
}

export function replace(node: Element, ...children: readonly Child[]): void {
  node.replaceChildren();
  append(node, children);
}

/** Sets a text only if it differs, so that a screen reader is not told the same thing again. */
export function setText(node: Element, text: string): void {
  const shown = escapeHidden(text);
  if (node.textContent !== shown) {
    node.textContent = shown;
  }
}

/** How a button looks, as JupyterLab's dialogs name it: what is usual, the first choice, a danger. */
const LOOKS = { usual: 'jp-mod-reject', first: 'jp-mod-accept', danger: 'jp-mod-warn' } as const;
export type Look = keyof typeof LOOKS;

export function button(label: string, click: () => void, options: Options = {}): HTMLButtonElement {
  return element(
    'button',
    {
      class: options.class ?? `gk-button jp-mod-styled ${LOOKS[options.look ?? 'usual']}`,
      attributes: { type: 'button', ...options.attributes },
      click: () => click()
    },
    label
  );
}

/** JupyterLab's icons by their names there; its page sets who draws them (``widgets.ts``). */
export const icons: { draw: (name: string) => HTMLElement } = {
  draw: () => document.createElement('span')
};

/** An icon beside words that say the same, or in a button that has a name. */
export function icon(name: string): HTMLElement {
  const node = icons.draw(name);
  node.classList.add('gk-icon');
  node.setAttribute('aria-hidden', 'true');
  return node;
}

/** A button of a toolbar; ``label`` is its name, which the pointer shows. */
export function iconButton(name: string, label: string, click: () => void): HTMLButtonElement {
  const attributes = { type: 'button', 'aria-label': label, title: label };
  return element(
    'button',
    { class: 'gk-tool jp-ToolbarButtonComponent', attributes, click: () => click() },
    icon(name)
  );
}

/** What is shown until the first answer comes. */
export function skeleton(): HTMLElement {
  const line = (): HTMLElement => element('span', { class: 'gk-skeleton-line' });
  return element(
    'div',
    { class: 'gk-skeleton', attributes: { 'aria-hidden': 'true' } },
    line(),
    line(),
    line()
  );
}

export function warning(text: string): HTMLElement {
  return element('p', { class: 'gk-warning' }, text);
}

const SVG = 'http://www.w3.org/2000/svg';

export function drawing(
  tag: string,
  attributes: Readonly<Record<string, string>>,
  ...children: readonly Node[]
): SVGElement {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const SHIELD = 'M8 1 2.5 3v4.6c0 3.4 2.3 6 5.5 7.4 3.2-1.4 5.5-4 5.5-7.4V3Z';

/** The project's sign; it is beside words that say the same. */
export function shield(): SVGElement {
  return drawing(
    'svg',
    { viewBox: '0 0 16 16', width: '16', height: '16', 'aria-hidden': 'true', class: 'gk-shield' },
    drawing('path', { d: SHIELD })
  );
}
export const SHIELD_SVG = `<svg xmlns="${SVG}" viewBox="0 0 16 16"><path class="jp-icon3" fill="#616161" d="${SHIELD}"/></svg>`;
