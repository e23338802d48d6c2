/** JupyterLab's rules for outputs, with the theme's colours and fonts, for a frame. */

/** Rules of JupyterLab's own style sheets that outputs get. */
const RULES = /\.jp-Rendered(HTMLCommon|Markdown|SVG|HTML)\b/;
const BASE = `
  body { color: var(--jp-content-font-color1); background: var(--jp-layout-color0);
    font-family: var(--jp-content-font-family); font-size: var(--jp-content-font-size1);
    line-height: var(--jp-content-line-height) }
  a { color: var(--jp-content-link-color) }
`;

let rules: string | null = null;
/** Variables of JupyterLab's themes, which what is drawn in a frame may use. */
const names = new Set<string>();

function readSheets(): string {
  const found: string[] = [];
  for (const sheet of document.styleSheets) {
    try {
      for (const rule of sheet.cssRules) {
        if (!(rule instanceof CSSStyleRule)) {
          continue;
        }
        if (RULES.test(rule.selectorText)) {
          found.push(rule.cssText);
        } else if (rule.selectorText === ':root') {
          [...rule.style].filter(name => name.startsWith('--jp-')).forEach(name => names.add(name));
        }
      }
    } catch {
      // a sheet of another origin: none of JupyterLab's
    }
  }
  return found.join('\n');
}

export interface FrameTheme {
  readonly kind: 'theme';
  readonly style: string;
  readonly dark: boolean;
}

export function frameTheme(dark: boolean): FrameTheme {
  rules ??= readSheets();
  const style = getComputedStyle(document.body);
  const values = [...names]
    .map(name => [name, style.getPropertyValue(name)] as const)
    .filter(([, value]) => value !== '') // what a theme lacks, a frame has by itself
    .map(([name, value]) => `${name}: ${value};`)
    .join('\n');
  return { kind: 'theme', style: `:root { ${values} }\n${BASE}${rules}`, dark };
}
