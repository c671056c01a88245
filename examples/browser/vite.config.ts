/// <reference types="vitest/config" />
import { defaultClientConditions, defineConfig, type Plugin } from "vite";

// With these headers a page may use threads (https://web.dev/articles/coop-coep); it runs without them on one.
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

// The browser itself sees to it that the page asks nothing of other hosts, so that no photo can leave.
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
  // ONNX Runtime's WebAssembly and its loader as files of their own: its threads start from the loader.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  optimizeDeps: { exclude: ["onnxruntime-web"] },
  worker: { format: "es", rollupOptions: { output: { assetFileNames } } },
  build: { target: "es2022", assetsInlineLimit: 0, rollupOptions: { output: { assetFileNames } } },
  server: { headers: ISOLATED },
  preview: { headers: ISOLATED },
  test: { testTimeout: 120_000 }, // a busy machine is no failure
});

/** Some hosts do not know `.mjs` as JavaScript, and browsers then refuse to run it. */
function assetFileNames(asset: { names: string[] }): string {
  const isModule = asset.names.some((name) => name.endsWith(".mjs"));
  return isModule ? "assets/[name]-[hash].js" : "assets/[name]-[hash][extname]";
}
