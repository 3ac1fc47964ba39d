import TestSupport
import Testing

/// `baton-demo tests`: what the end of `make test` says.
struct TestTableTests {
    /// Runs a script in place of the tests.
    private func run(_ script: String) throws -> ChildProcess {
        let run = try ChildProcess([demo, "tests", "--", "sh", "-c", script])
        try run.waitForExit()
        return run
    }

    @Test func whatWasSkippedIsListedWithItsReason() throws {
        let lines = """
            ◇ Test run started.
            ➜ Suite "riscv" skipped: "needs clang"
            ➜ Test a() skipped: "needs clang"
            ➜ Test "named "so" test" skipped.
            ➜ Test b(_:) skipped: "the first line
            and the second"
            ◇ Test "with arguments" started.
            ◇ Test case passing 1 argument x → 2 to "with arguments" started.
            ✔ Test "with arguments" with 2 test cases passed after 0.001 seconds.
            ◇ Test known() started.
            ━ Test known() recorded a known issue at t.swift:11:74: Expectation failed: 1 == 2
            ↳ the next shape mends it
            ━ Test known() passed after 0.001 seconds with 1 known issue.
            ◇ Test crashes() started.
            ✘ Test bad() recorded an issue at t.swift:3:9: Expectation failed: 1 == 2
            ↳ what a comment says
            ✘ Test bad() failed after 0.001 seconds with 1 issue.
            ✘ Test run with 7 tests in 2 suites failed after 0.001 seconds with 2 issues.
            """
        let directory = try TemporaryDirectory()
        let run = try run("cat '\(try directory.write("lines", lines + "\n"))'")
        #expect(
            run.output == lines + """


                skipped: a() — needs clang
                skipped: "named "so" test" — no reason was given
                skipped: b(_:) — the first line and the second
                expected to fail: known() — the next shape mends it
                failed: bad() — at t.swift:3:9: Expectation failed: 1 == 2
                without an end: crashes()
                2 passed, 1 failed, 3 skipped, 1 with expected failures, 1 without an end

                """)
        #expect(run.errors == "")
    }

    @Test(
        "The status is the command's",
        arguments: [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("sleep 30 2>/dev/null & exit 4", 4)])
    func status(_ script: String, _ status: Int32) throws {
        let run = try ChildProcess([demo, "tests", "--", "sh", "-c", script])
        #expect(try run.waitForExit() == .status(status))
    }
}
