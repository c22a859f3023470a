// A person in headless Chromium: node chromium.mjs MODULES_DIR CHROMIUM, then a step a line on standard input, as JSON.
//   {"open": URL}                 {"fill": {SELECTOR: TEXT, …}}
//   {"click": SELECTOR}           {"until": PATH}            waits until the page's path is this one
// After each step it says, on one line of JSON, where it is and what the page shows.
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [modules, executablePath] = process.argv.slice(2);
const { chromium } = (await import(pathToFileURL(`${modules}/playwright-core/index.js`))).default;
const browser = await chromium.launch({
  executablePath, args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});
const page = await browser.newPage();
page.setDefaultTimeout(30000);
for await (const line of createInterface({ input: process.stdin })) {
  const step = JSON.parse(line);
  try {
    if (step.open) await page.goto(step.open);
    for (const [selector, text] of Object.entries(step.fill ?? {})) await page.fill(selector, text);
    if (step.click) await Promise.all([page.waitForNavigation(), page.click(step.click)]);
    if (step.until) await page.waitForURL((url) => url.pathname === step.until);
    console.log(JSON.stringify({ url: page.url(), text: await page.textContent('body') }));
  } catch (error) {
    console.log(JSON.stringify({ url: page.url(), error: String(error), text: await page.textContent('body') }));
  }
}
await browser.close();
