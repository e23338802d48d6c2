"use strict";(()=>{function a(e){window.gvisorRender=e}function i(e){let n=document.createElement("style");n.textContent=e,document.head.append(n)}function d(e){let[n,o,t,r]=e?["#e3e3e3","#111","#555","#2a2a2a"]:["#1c1c1c","#fff","#bbb","#f0f0f0"];i(`
    body { margin: 0; padding: 16px; color: ${n}; background: ${o};
      font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
    table { border-collapse: collapse } th, td { border: 1px solid ${t}; padding: 2px 8px;
      text-align: left; vertical-align: top; white-space: pre-wrap; max-width: 40em }
    th { background: ${r}; position: sticky; top: 0 }
    pre, code { background: ${r}; font: 13px/1.4 ui-monospace, monospace }
    pre { padding: 8px; overflow: auto } img, svg, canvas { max-width: 100% }
    a { color: ${e?"#8ab4f8":"#0b57d0"} } p.note { opacity: 0.8 }
  `)}a(async(e,{dark:n,root:o})=>{d(n);let t=window.vegaEmbed;await t(o,JSON.parse(e),{actions:!1,...n?{theme:"dark"}:{}})});})();
