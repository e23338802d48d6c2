/** Markup of documents: without scripts, handlers and forms, although the frame would hold them. */

import { removeMath, replaceMath } from '@jupyterlab/rendermime/lib/latex';
import DOMPurify from 'dompurify';
import { marked } from 'marked';

export function showHtml(html: string, root: Element): void {
  const clean = DOMPurify.sanitize(html, {
    FORBID_TAGS: ['form', 'style'],
    RETURN_DOM_FRAGMENT: true
  });
  root.append(clean);
}

/** Shows Markdown, with its formulas if the bundle ``katex`` is there. */
export function showMarkdown(source: string, root: Element): void {
  const { text, math } = removeMath(source);
  showHtml(replaceMath(marked.parse(text, { async: false, gfm: true }), math), root);
  (window as { gvisorTypeset?(node: Element): void }).gvisorTypeset?.(root);
}
