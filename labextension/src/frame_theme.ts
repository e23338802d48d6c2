/** JupyterLab's rules for outputs, with the theme's colours and fonts, for a frame. */

/** Rules of JupyterLab's own style sheets that outputs get. */
const RULES = /\.jp-Rendered(HTMLCommon|Markdown|SVG|HTML)\b/;
const BASE = `
  body { color: var(--jp-content-font-color1); background: var(--jp-layout-color0);
    font-family: var(--jp-content-font-family); font-size: var(--jp-content-font-size1);
    line-height: var(--jp-content-line-height) }
  a { color: var(--jp-content-link-color) }
  .gvisor-used { color: var(--jp-ui-font-color0) var(--jp-ui-font-color1) var(--jp-ui-font-color2)
    var(--jp-ui-font-color3) var(--jp-ui-font-family) var(--jp-ui-font-size1)
    var(--jp-border-color0) var(--jp-border-color1) var(--jp-border-color2) var(--jp-border-color3)
    var(--jp-layout-color1) var(--jp-layout-color2) var(--jp-layout-color3) var(--jp-brand-color1)
    var(--jp-code-font-family) var(--jp-code-font-size) var(--jp-code-line-height)
    var(--jp-brand-color0) var(--jp-brand-color2) var(--jp-ui-font-size2)
    var(--jp-inverse-ui-font-color0) var(--jp-inverse-ui-font-color1)
    var(--jp-ui-inverse-font-color0) var(--jp-ui-inverse-font-color1)
    var(--jp-success-color0) var(--jp-success-color1) var(--jp-info-color0) var(--jp-info-color1)
    var(--jp-warn-color0) var(--jp-warn-color1) var(--jp-error-color0) var(--jp-error-color1)
    var(--jp-rendermime-error-background) }
`;

let rules: string | null = null;

function ownRules(): string {
  const found: string[] = [];
  for (const sheet of document.styleSheets) {
    try {
      for (const rule of sheet.cssRules) {
        if (rule instanceof CSSStyleRule && RULES.test(rule.selectorText)) {
          found.push(rule.cssText);
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
  rules ??= ownRules();
  const text = BASE + rules;
  const names = new Set(Array.from(text.matchAll(/var\(\s*(--[\w-]+)/g), ([, name = '']) => name));
  const style = getComputedStyle(document.body);
  const values = [...names]
    .map(name => [name, style.getPropertyValue(name)] as const)
    .filter(([, value]) => value !== '') // what a theme lacks, a frame has by itself
    .map(([name, value]) => `${name}: ${value};`)
    .join('\n');
  return { kind: 'theme', style: `:root { ${values} }\n${text}`, dark };
}
