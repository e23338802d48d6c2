/** Markup of documents: without scripts, handlers and forms, although the frame would hold them. */

import DOMPurify from 'dompurify';
import { marked } from 'marked';

export function showHtml(html: string, root: Element): void {
  const clean = DOMPurify.sanitize(html, {
    FORBID_TAGS: ['form', 'style'],
    RETURN_DOM_FRAGMENT: true
  });
  root.append(clean);
}

export function showMarkdown(source: string, root: Element): void {
  showHtml(marked.parse(source, { async: false, gfm: true }), root);
}
