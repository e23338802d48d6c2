import tseslint from 'typescript-eslint';

/** What comes from a server or a sandbox is text: these would read it as markup or as code. */
const markup = ['innerHTML', 'outerHTML', 'insertAdjacentHTML', 'write', 'writeln', 'srcdoc'];

export default tseslint.config(
  { ignores: ['lib/', 'dist/', 'node_modules/'] },
  {
    files: ['src/**/*.ts', 'frame/*.ts'],
    extends: [tseslint.configs.strictTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      eqeqeq: 'error',
      'no-eval': 'error',
      'no-restricted-properties': ['error', ...markup.map(property => ({ property }))],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }]
    }
  },
  {
    // Markup of a sandbox is what these show, in the frame that is made for it.
    files: ['frame/*.ts'],
    rules: { 'no-restricted-properties': 'off' }
  }
);
