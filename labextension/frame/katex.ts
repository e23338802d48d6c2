/** Formulas, which the page sets with MathJax: KaTeX with its fonts, for frames with some. */

import render from 'katex/contrib/auto-render';
import styles from 'katex/dist/katex.min.css';

import { addStyle } from './renderer.js';

const PAIRS = ['$$ $$', '$ $', '\\( \\)', '\\[ \\]'].map(it => it.split(' '));
const delimiters = PAIRS.map(([left = '', right = '']) => ({
  left,
  right,
  display: left === '$$' || left === '\\['
}));

addStyle(styles);
Object.assign(window, {
  gvisorTypeset: (element: HTMLElement) => render(element, { delimiters, throwOnError: false })
});
