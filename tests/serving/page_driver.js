// Uses the page as a person does, in a headless Chromium; prints what it saw as JSON.
// node page_driver.js '{"url", "chromium", "cells", "broken", "many", "genes", "folder"}'
const { chromium } = require("playwright-core");
const path = require("path");

const given = JSON.parse(process.argv[2]);
const seen = { problems: [], strangers: [], keys: [], deletes: [] };

async function open(options = {}) {
  const browser = await chromium.launch({ executablePath: given.chromium, args: ["--no-sandbox"] });
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  page.on("pageerror", (error) => seen.problems.push(String(error)));
  page.on("console", (line) => {
    const expected = /status of 4(01|22|29)/.test(line.text()); // told to the user in words
    if (["error", "warning"].includes(line.type()) && !expected) seen.problems.push(line.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(given.url) && !request.url().startsWith("blob:")) seen.strangers.push(request.url());
    const key = request.headers().authorization;
    if (key && !seen.keys.includes(key)) seen.keys.push(key);
    if (request.method() === "DELETE") seen.deletes.push(new URL(request.url()).pathname);
  });
  await page.goto(given.url);
  await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
  return { browser, page };
}

const laidOut = (page) => page.waitForFunction(() => document.querySelector("#canvas").dataset.done === "1");
const text = (page, id) => page.textContent(`#${id}`);
const legend = (page) => page.$$eval("#legend button span", (all) => all.map((each) => each.textContent));
const shot = (page, name) => page.screenshot({ path: path.join(given.folder, `${name}.png`), fullPage: true });

async function save(page, button, name) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(`#${button}`)]);
  await download.saveAs(path.join(given.folder, name));
}

async function drag(page, tool) {
  await page.check(`input[value=${tool}]`);
  const box = await page.locator("#canvas").boundingBox();
  const corners = [[10, 10], [box.width - 10, 10], [box.width - 10, box.height - 10], [10, box.height - 10]];
  await page.locator("#canvas").scrollIntoViewIfNeeded();
  const { x, y } = await page.locator("#canvas").boundingBox();
  await page.mouse.move(x + 10, y + 10);
  await page.mouse.down();
  for (const [dx, dy] of tool === "box" ? [corners[2]] : corners) await page.mouse.move(x + dx, y + dy, { steps: 4 });
  await page.mouse.up();
  return text(page, "picked");
}

async function example(page) {
  await page.click("#example");
  await laidOut(page);
  seen.example = { about: await text(page, "about"), legend: await legend(page) };
  await page.selectOption("#colour", "n_counts");
  seen.example.scale = await page.locator("#legend .scale").count();
  await page.selectOption("#colour", "group");
  await page.click("#legend button >> nth=0");
  seen.example.picked = await text(page, "picked");
  await page.click("#run");
  await page.waitForSelector("#table tbody tr");
  seen.example.bars = await page.locator("#chart rect").count();
  await shot(page, "example");
}

async function upload(page) {
  await page.evaluate(() => { document.querySelector("#canvas").dataset.done = ""; });
  await page.setInputFiles("#file", given.cells);
  await laidOut(page);
  await page.waitForSelector("#load-progress", { state: "hidden" });
  seen.upload = {
    columns: await page.$$eval("#colour option", (all) => all.map((each) => each.value)),
    legend: await legend(page),
    lasso: await drag(page, "lasso"),
    box: await drag(page, "box"),
  };
  await page.click("#none");
  seen.upload.none = [await text(page, "picked"), await page.isDisabled("#run")];
  await page.focus("#canvas");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Space");
  seen.upload.keyboard = await text(page, "picked");
  seen.upload.tip = await text(page, "tip");
}

async function screenOfTwo(page) {
  await page.click("#all");
  await page.selectOption("#which", "list");
  await page.fill("#gene", "name3");
  seen.suggested = await page.$$eval("#gene-list option", (all) => all.map((each) => each.value));
  await page.press("#gene", "Enter");
  await page.fill("#gene", "NAME4");
  await page.selectOption("#goal", "well");
  await page.fill("#top", "");
  await page.click("#run");
  await page.waitForFunction(() => document.querySelector("#result-note").textContent.startsWith("delete, 60"));
  seen.chips = await page.$$eval("#chips button", (all) => all.map((each) => each.ariaLabel));
  await save(page, "csv-rows", "rows.csv");
  await save(page, "csv-genes", "genes.csv");
  await page.click("th button:has-text('Gene')");
  seen.sorted = await page.$$eval("#table tbody tr", (all) => all.map((row) => row.cells[1].textContent));
}

async function job(page) {
  await page.selectOption("#kind", "overexpress");
  await page.fill("#gene", given.genes.join(" "));
  await page.click("#run");
  await page.waitForFunction(() => document.querySelector("#result-note").textContent.startsWith("overexpress, 60"));
  seen.job = await text(page, "result-note");
  await page.waitForTimeout(200);
  seen.dropped = [...seen.deletes];
  await page.route("**/v1/jobs/*", async (route) => {
    if (route.request().method() === "GET") await new Promise((resolve) => setTimeout(resolve, 3000));
    await route.continue().catch(() => {});
  });
  const begun = page.waitForResponse((answer) => answer.status() === 202);
  await page.click("#run");
  await begun;
  const cancelled = page.waitForRequest((request) => request.method() === "DELETE");
  await page.click("#run-cancel");
  await cancelled;
  seen.hidden = await page.isHidden("#run-progress");
}

async function errors(page) {
  await page.setInputFiles("#file", given.broken);
  await page.waitForSelector("#error:not([hidden])");
  seen.error = await text(page, "error");
  await page.setInputFiles("#file", given.many);
  await page.waitForFunction(() => document.querySelector("#about").textContent.includes("drawn at random"));
  seen.many = await text(page, "about");
  await page.fill("#key", "secret-key");
  await page.press("#key", "Tab");
  await page.waitForResponse((answer) => answer.url().endsWith("/v1/models"));
  seen.stored = await page.evaluate(() => [Object.values(sessionStorage), localStorage.length, document.cookie]);
  await page.route("**/v1/models", (route) => route.fulfill({
    status: 401, contentType: "application/json", body: '{"error": {"code": "no_key", "message": "send a key"}}' }));
  await page.fill("#key", "");
  await page.press("#key", "Tab");
  await page.waitForFunction(() => document.querySelector("#error").textContent.includes("key"));
  seen.refused = await text(page, "error");
}

async function narrow() {
  const { browser, page } = await open({ viewport: { width: 380, height: 800 }, colorScheme: "dark" });
  await page.click("#example");
  await laidOut(page);
  await page.click("#legend button >> nth=1");
  await page.click("#run");
  await page.waitForSelector("#table tbody tr");
  seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await shot(page, "narrow");
  await browser.close();
}

(async () => {
  const { browser, page } = await open();
  for (const part of [example, upload, screenOfTwo, job, errors]) await part(page);
  await browser.close();
  await narrow();
  console.log(JSON.stringify(seen));
})().catch((error) => {
  console.error(error, JSON.stringify(seen));
  process.exit(1);
});
