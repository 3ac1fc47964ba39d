/* The exec of a new VMM beside the old one (beside.c), for spin: see README.md beside this file.
 *
 * Two tasks share their memory: Process executes the new VMM, Child waits for that, and goes on as the old VMM. If the
 * exec fails it is Process that goes on, and Child is to end. Only one of them may ever go on in that memory.
 *
 *   (nothing)    as it is
 *   PID1         the process is PID 1 of its namespace: no SIGKILL from there reaches it
 * Mutations: BOTH_KILL, PID1_LIMIT. */

#define PROCESS 0
#define CHILD 1

bool killed[2], killedFromOutside[2], ended[2];
bool goesOn[2];
/* Always false: the names of what does not hold. */
hidden byte neverTwo, neverNone, ownStack;
bool isExecuted;
/* call.outcome: which of the two goes on. */
mtype = { open, failed, late };
mtype outcome = open;
/* A task that has been killed completes the system call that it is in. */
bool isKilling[2];
bool hasBegun;

inline goOn(who) { atomic { assert(neverTwo || !goesOn[1 - who] || (who == CHILD && isExecuted)); goesOn[who] = true } }

inline kill(who, whom) { isKilling[who] = true; !isKilling[who] }

active proctype Process() {
	{
		atomic { run Child(); hasBegun = true };
		/* execute */
		if
		:: isExecuted = true; goto newVMM
		:: assert(ownStack || !goesOn[CHILD])   /* execvpe has failed, and returns upon the stack that the child goes on upon */
		:: killed[PROCESS]          /* a disk that does not answer */
		fi;
#ifndef BOTH_KILL
		/* end_exec */
		atomic { if :: outcome == open -> outcome = failed :: else -> goto isLate fi };
#endif
		kill(PROCESS, CHILD);
		goOn(PROCESS);
newVMM:
		killed[PROCESS];
isLate:
		/* The child is about to kill this task, which ends if nobody does. */
		skip
	} unless { killed[PROCESS] };
	atomic { goesOn[PROCESS] = false; ended[PROCESS] = true }
}

proctype Child() {
	{
		/* wait_for_exec */
		if
		:: isExecuted || ended[PROCESS] -> goto isOver
#ifdef PID1
#ifdef PID1_LIMIT
		:: true
#endif
#else
		:: true                     /* limit */
#endif
		fi;
#ifndef BOTH_KILL
		atomic {
			if
			:: outcome == open -> outcome = late
			:: else ->
				/* The exec has failed: this task is ended, if that one is not ended first. */
				ended[PROCESS] -> goto isOver
			fi
		};
#endif
		kill(CHILD, PROCESS);
isOver:
		goOn(CHILD);
pause:
		killed[CHILD]
	} unless { killed[CHILD] };
	atomic { goesOn[CHILD] = false; ended[CHILD] = true }
}

/* The kernel. */
active proctype Kernel() {
	do
	:: atomic { isKilling[PROCESS] -> killed[CHILD] = true; goesOn[CHILD] = false; isKilling[PROCESS] = false }
	:: atomic { isKilling[CHILD] ->
#ifndef PID1
		killed[PROCESS] = true; goesOn[PROCESS] = false;
#endif
		isKilling[CHILD] = false }
	od
}

active proctype Outside() {
	hasBegun;
	do
	:: atomic { !killed[PROCESS] -> killed[PROCESS] = true; killedFromOutside[PROCESS] = true; goesOn[PROCESS] = false }
	:: atomic { !killed[CHILD] -> killed[CHILD] = true; killedFromOutside[CHILD] = true; goesOn[CHILD] = false }
	:: break
	od
}

active proctype AtTheEnd() {
	timeout ->
	/* Never none, unless both were killed, or the one that had been left by the other. */
	assert(neverNone || goesOn[PROCESS] || goesOn[CHILD] || (killedFromOutside[PROCESS] && ended[CHILD])
		|| (killedFromOutside[CHILD] && (isExecuted || ended[PROCESS]))
#ifdef PID1
		/* A disk that does not answer: PID 1 cannot be ended, so that it is waited for. */
		|| (!isExecuted && !ended[PROCESS] && !ended[CHILD])
#endif
		)
}
