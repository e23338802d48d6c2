/** What a renderer gets from the frame (``gvisor_kernel/artifacts/frame/page.js``). */

import type { FrameTheme } from '../src/frame_theme.js';

export interface FrameFile {
  readonly bytes: ArrayBuffer;
  readonly type: string;
}

export interface Tools {
  readonly name: string;
  readonly dark: boolean;
  readonly root: HTMLElement;
  readonly reportError: (message: string, file?: string, line?: number, column?: number) => void;
  readonly readFile: (path: string) => Promise<FrameFile>;
  /** Evaluates a script in the global scope of the frame. */
  readonly evaluate: (code: string) => unknown;
  /** Asks the extension, which knows the methods of ``PageFrame``. */
  readonly call: (method: string, args: unknown) => Promise<unknown>;
  /** Tells the height of this element from now on (``PageEvents.size``), and not the document's. */
  readonly watchHeight: (element: Element) => void;
  /**
   * Sends JSON and buffers to the extension (``PageEvents.message``): up to 4 Mi characters and
   * 32 MiB of buffers in a second, of which what is above is dropped.
   */
  readonly send: (data: unknown, buffers?: readonly ArrayBuffer[]) => void;
  /** Calls ``handler`` with what ``PageFrame.send`` sends, also what came before this call. */
  readonly onMessage: (handler: (data: unknown, buffers: readonly ArrayBuffer[]) => void) => void;
}

export type Render<Source> = (source: Source, tools: Tools) => Promise<void> | void;

declare global {
  interface Window {
    gvisorRender?: Render<never>;
    gvisorLibraries?: Readonly<Record<string, unknown>>;
  }
}

/** Called once by the script of each renderer. */
export function register<Source extends string | ArrayBuffer>(render: Render<Source>): void {
  window.gvisorRender = render;
}

export function addStyle(text: string): void {
  const style = document.createElement('style');
  style.textContent = text;
  document.head.append(style);
}

let theme: HTMLStyleElement | null = null;

function takeTheme({ style, dark }: FrameTheme): void {
  theme ??= document.head.appendChild(document.createElement('style'));
  theme.textContent = style;
  document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
  document.body.dataset.jpThemeLight = String(!dark);
}

/** Gives ``handler`` what the extension sends to outputs and widgets; themes are taken here. */
export function listen({ onMessage }: Tools, handler: (message: unknown) => void): void {
  onMessage(data => {
    const message = data as FrameTheme | { readonly kind: 'draw' | 'packet' };
    if (message.kind === 'theme') {
      takeTheme(message);
    } else {
      handler(message);
    }
  });
}

/** What documents, tables and pictures look like; a page in HTML or JSX has its own. */
export function addDocumentStyle(dark: boolean): void {
  const [text, back, line, mark] = dark
    ? ['#e3e3e3', '#111', '#555', '#2a2a2a']
    : ['#1c1c1c', '#fff', '#bbb', '#f0f0f0'];
  addStyle(`
    body { margin: 0; padding: 16px; color: ${text}; background: ${back};
      font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
    table { border-collapse: collapse } th, td { border: 1px solid ${line}; padding: 2px 8px;
      text-align: left; vertical-align: top; white-space: pre-wrap; max-width: 40em }
    th { background: ${mark}; position: sticky; top: 0 }
    pre, code { background: ${mark}; font: 13px/1.4 ui-monospace, monospace }
    pre { padding: 8px; overflow: auto } img, svg, canvas { max-width: 100% }
    a { color: ${dark ? '#8ab4f8' : '#0b57d0'} } p.note { opacity: 0.8 }
  `);
}

export function add<K extends keyof HTMLElementTagNameMap>(
  parent: Node,
  tag: K,
  text = ''
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  node.textContent = text;
  parent.appendChild(node);
  return node;
}
