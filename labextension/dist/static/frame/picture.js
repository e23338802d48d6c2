"use strict";(()=>{function l(t){window.gvisorRender=t}function d(t){let e=document.createElement("style");e.textContent=t,document.head.append(e)}function c(t){let[e,a,o,n]=t?["#e3e3e3","#111","#555","#2a2a2a"]:["#1c1c1c","#fff","#bbb","#f0f0f0"];d(`
    body { margin: 0; padding: 16px; color: ${e}; background: ${a};
      font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
    table { border-collapse: collapse } th, td { border: 1px solid ${o}; padding: 2px 8px;
      text-align: left; vertical-align: top; white-space: pre-wrap; max-width: 40em }
    th { background: ${n}; position: sticky; top: 0 }
    pre, code { background: ${n}; font: 13px/1.4 ui-monospace, monospace }
    pre { padding: 8px; overflow: auto } img, svg, canvas { max-width: 100% }
    a { color: ${t?"#8ab4f8":"#0b57d0"} } p.note { opacity: 0.8 }
  `)}function m(t,e,a=""){let o=document.createElement(e);return o.textContent=a,t.appendChild(o),o}var g=16e6;l(async(t,{name:e,dark:a,root:o})=>{c(a),d(`img, canvas, video { max-width: 100%; max-height: max(100vh - 32px, 300px);
      object-fit: contain; object-position: 0 0 }
    img, canvas { background: white } audio { width: 100% }`);let n=p(e),s=URL.createObjectURL(new Blob([t],{type:n}));if(n.startsWith("image/")){let i=document.createElement("img");i.alt=e,i.src=s,await u(i,"load","drawn"),o.appendChild(n==="image/svg+xml"?h(i):i);return}let r=m(o,n.startsWith("video/")?"video":"audio");r.controls=!0,r.preload="metadata",r.setAttribute("aria-label",e),r.src=s,await u(r,"loadedmetadata","played")});function p(t){let e=(/\.([a-z0-9]+)$/i.exec(t)?.[1]??"").toLowerCase();return`${/^(flac|m4a|mp3|og[ag]|wav)$/.test(e)?"audio":/^(mp4|ogv|webm)$/.test(e)?"video":"image"}/${e==="svg"?"svg+xml":e}`}function h(t){let{naturalWidth:e,naturalHeight:a}=t,o=Math.min(devicePixelRatio,Math.sqrt(g/Math.max(e*a,1))),n=document.createElement("canvas");return n.width=Math.ceil(e*o),n.height=Math.ceil(a*o),n.style.width=`${e}px`,n.setAttribute("role","img"),n.setAttribute("aria-label",t.alt),n.getContext("2d",{willReadFrequently:!0})?.drawImage(t,0,0,n.width,n.height),n}function u(t,e,a){return new Promise((o,n)=>{t.addEventListener(e,()=>o()),t.addEventListener("error",()=>n(new Error(`This file cannot be ${a} by this browser; download it.`)))})}})();
