/// <reference types="vitest/config" />
import { defaultClientConditions, defineConfig, type Plugin } from "vite";

// Pages need these headers to use threads (https://web.dev/articles/coop-coep); without them there is one thread.
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

// The browser enforces that the page contacts no other hosts, so that photos cannot leave it.
const POLICY = [
  "default-src 'self'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "img-src 'self' blob:",
  "media-src 'self' blob:",
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

function contentSecurityPolicy(): Plugin {
  return {
    name: "content-security-policy",
    apply: "build", // the development server sends code inline
    transformIndexHtml: () => [
      { tag: "meta", attrs: { "http-equiv": "Content-Security-Policy", content: POLICY }, injectTo: "head-prepend" },
    ],
  };
}

export default defineConfig({
  base: "./", // the page works in any folder of any host
  plugins: [contentSecurityPolicy()],
  // ONNX Runtime's WebAssembly and its loader are separate files: its threads start from the loader.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  optimizeDeps: { exclude: ["onnxruntime-web"] },
  worker: { format: "es", rollupOptions: { output: { assetFileNames } } },
  build: { target: "es2022", assetsInlineLimit: 0, rollupOptions: { output: { assetFileNames } } },
  server: { headers: ISOLATED },
  preview: { headers: ISOLATED },
  test: { testTimeout: 120_000 }, // a busy machine is no failure
});

/** Some hosts do not serve `.mjs` as JavaScript, and browsers then refuse to run it. */
function assetFileNames(asset: { names: string[] }): string {
  const isModule = asset.names.some((name) => name.endsWith(".mjs"));
  return isModule ? "assets/[name]-[hash].js" : "assets/[name]-[hash][extname]";
}
