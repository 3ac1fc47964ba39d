/* The handover's protocol, for spin: see README.md beside this file for what is modelled, and what is not.
 *
 * Two processes, OldVMM and NewVMM, do what Successor.swift, Predecessor.swift, CprController+Exec.swift and
 * CprController+Load.swift do; labels, messages and stages have the names that they have there. A third, Outside,
 * kills, stops and continues them at any point, and is the clients. Time is not modelled: a limit may run out at any
 * point at which the code looks at one, so that whatever holds here holds for all limits and all speeds.
 *
 * What the search is made for is chosen by macros:
 *   (nothing)      cpr-update with argv: the new VMM is executed
 *   PLACEHOLDER    the same, of a VM that has a placeholder already
 *   PID1           the same, of a VM that is PID 1 of its namespace
 *   WRAPPED        the same, and a command that was put in front of the new VMM stays as its parent
 *   THREE_STEPS    cpr-save, cpr-exec, cpr-load
 *   TRANSFER       cpr-update with a channel
 *   STRANGER       the same, to a process that the old VMM may not signal, or whose PID it cannot know
 * A mutation (see the table in README.md) is one more macro, and makes the search find a fault. */

#ifdef STRANGER
#define TRANSFER
#endif
#ifndef TRANSFER
#define EXEC /* the new VMM is executed by the old one's process */
#endif

#define OLD 0
#define NEW 1

/* ---- Messages. */

/* HandoverMessage. */
mtype:handoverMessage = { hello, introduction, descriptors, state, end };
/* UpdateStage, and what WatchMessages knows beside it. */
mtype:watchMessage = { starting, ready, waiting, loading, committed, failure, hasStayed };

chan toNew = [6] of { mtype:handoverMessage };
chan toOld = [9] of { mtype:watchMessage };
/* Whether the last copy of an end of the channel is closed. What was sent before can still be read. */
bool closed[2];

/* ---- HandoverToken. */

mtype:token = { secret, taken, takenBack };
mtype:token token = secret;
mtype:use = { unused, used, givenUp };
mtype:use useWord = unused;

/* ---- Processes. */

/* SIGKILL: runs no more of its code. By anybody; and by somebody who is none of the two. */
bool killed[2], killedFromOutside[2];
/* SIGSTOP for ever, of the new VMM. One that is continued is like one that has no processor for a while, and so is the
 * old one: the search has every order of steps in any case. */
bool isStopped;
/* Shows on a pidfd. */
bool ended[2];
/* The process whose pidfd the old VMM has. */
#ifdef WRAPPED
bool wrapperEnded;
#define processEnded wrapperEnded
#else
#define processEnded ended[NEW]
#endif
/* Whether the process in which the new VMM was executed is a placeholder (Placeholder.stay, .follow). */
bool isPlaceholder;
/* Whether the new VMM has given up by itself. */
bool refused;
/* There are two. */
bool hasBegun;

inline killProcess(who) { atomic { killed[who] = true; runs[who] = false } }

/* ---- Properties: always false, so that pan says by name which it is that does not hold. */

hidden byte neverTwo, neverNone, stateOfTheLastStop, answeredOnce, itEnds, nothingStays, toldToEnd, noOtherOwner;

/* ---- The guest: a counter in its RAM, and the same counter in a register. */

byte ram;
byte cpu[2];       /* the registers, in each VMM's memory */
byte checkpoint;   /* the registers, as they were saved last */
bool runs[2];
byte steps;
#ifndef MOST_STEPS
#define MOST_STEPS 3
#endif
/* How often a client's cpr-load fails. */
#ifndef MOST_LOADS
#define MOST_LOADS 1
#endif

/* Somebody has told the VM to end, and has the answer. */
bool isToEnd;
/* The old VMM knows that: by its own clients or the guest, or by SIGTERM from the new one. */
bool oldIsToEnd;
/* The guest stands still by its client's will. */
bool standsByWill;

/* VirtualMachine.start. */
inline start(who) {
	atomic {
		assert(neverTwo || !runs[1 - who]);
		assert(stateOfTheLastStop || cpu[who] == ram);
		if
		:: !killed[who] -> runs[who] = true
		:: else
		fi
	}
}

inline step(who) { steps++; ram++; cpu[who] = ram }

active proctype Guest() {
	do
	:: atomic { runs[OLD] && steps < MOST_STEPS -> step(OLD) }
	:: atomic { runs[NEW] && !isStopped && steps < MOST_STEPS -> step(NEW) }
	od
}

/* Device.resume in the new VMM: a device goes on with a request, or does not have any. */
inline resumeDevices() {
	if
	:: true
	:: atomic { steps < MOST_STEPS -> step(NEW) }
	fi
}

/* ---- Answers to the command that asked for the update: `cpr-update`, or `cpr-exec`. */

byte answers;
#if defined(PID1) && defined(THREE_STEPS)
/* A new VMM that cannot be ended may answer cpr-exec in the moment in which it is given up. */
#define MOST_ANSWERS 2
#else
#define MOST_ANSWERS 1
#endif
inline answer() { atomic { answers++; assert(answeredOnce || answers <= MOST_ANSWERS) } }

/* ---- The old VMM: Successor, and CprController.replace. */

/* The update is over for the old VMM: what it does next has nothing to do with it. */
bool isOver;
mtype:watchMessage stage = starting;   /* WatchMessages.stage */
bool refusal, stayed, hasWaited;       /* WatchMessages.refusal, .hasStayed, .hasWaited */

/* WatchMessages.receive: blocks where it finds nothing. */
inline receive() {
	atomic {
		toOld ? heard ->
		if
		:: heard == failure -> refusal = true
		:: heard == hasStayed -> stayed = true
		:: else ->
			stage = heard;
			if
			:: heard == waiting -> hasWaited = true
			:: else
			fi
		fi;
		heard = starting
	}
}

/* Successor.awaitNews has `.end`: of the channel, or of the process where nothing else is to be read. The end of the
 * process may be looked at when there is something that came after the look at the channel. */
#ifdef STRANGER
#define isEnd (empty(toOld) && closed[NEW])
#else
#define isEnd ((empty(toOld) && closed[NEW]) || processEnded)
#endif
/* Nothing came within a time limit. */
#define isSilent (empty(toOld) && !closed[NEW] && !processEnded)


active proctype OldVMM() {
	mtype:watchMessage heard = starting;
	bool isTaken;

	{
		start(OLD);
#ifdef THREE_STEPS
		/* cpr-save */
		atomic { runs[OLD] = false; checkpoint = cpu[OLD]; standsByWill = true }
#endif
		/* Handover.carryOut. What fails before there is a new VMM is in exec.pml, and a refusal of the socket's peer. */
#ifdef TRANSFER
attach:
		atomic { run NewVMM(); hasBegun = true };
		toNew ! introduction;
		toNew ! descriptors;
#else
		atomic {
			runs[OLD] = false;
			run NewVMM();
			hasBegun = true;
#ifndef THREE_STEPS
			start(OLD)
#endif
		};
		if
		:: !closed[NEW] -> toNew ! hello
		:: closed[NEW]
		fi;
#endif

awaitReady:
		do
		:: stage == ready -> goto isReady
		:: receive()
		:: refusal && stayed -> goto giveUp
		:: isEnd -> goto giveUp
		:: goto giveUp       /* timeout-ms; a second after a refusal; migrate_cancel */
#ifndef THREE_STEPS
		:: goto leaveWhenReady /* quit, SIGTERM, or the guest's own end */
#endif
		od;

leaveWhenReady:
		atomic { runs[OLD] = false; isToEnd = true; oldIsToEnd = true };
		do
		:: stage == ready -> goto leave
		:: stage == starting && !refusal && nempty(toOld) -> receive()
		:: stage != ready && (refusal || isEnd || true) -> break
		od;
#ifdef EXEC
		killProcess(NEW);
#endif
		goto finish;
leave:
		toNew ! end;
finish:
		closed[OLD] = true;
		goto theEnd;

isReady:
#ifndef THREE_STEPS
		if
		:: true
		:: atomic { runs[OLD] = false; isToEnd = true; oldIsToEnd = true } -> goto leave /* what came meanwhile: takeSignals, isEnding */
		fi;
		/* VirtualMachine.stop, and the save. */
#ifdef SAVED_BEFORE_STOP
		checkpoint = cpu[OLD];
		runs[OLD] = false;
#else
		atomic { runs[OLD] = false; checkpoint = cpu[OLD] };
#endif
#endif

handOver:
		if
		:: true
		:: goto takeBack     /* a module, a blocker, the time limit of a call */
		fi;
#ifdef TOKEN_BEFORE_READY
		if
		:: token == secret
		:: else -> goto takeBack
		fi;
#else
		if
		:: !closed[NEW] -> toNew ! state
		:: closed[NEW] -> goto takeBack
		fi;
#endif
		if
		:: !closed[NEW] -> toNew ! descriptors
		:: closed[NEW] -> goto takeBack
		fi;

awaitCommit:
		do
		:: stage == committed -> goto takeBack
		:: receive()
		:: isEnd -> goto takeBack
#ifndef NO_LIMIT
		:: (stage != waiting || refusal) && isSilent -> goto takeBack /* downtime-ms; a second after a refusal */
#endif
		od;

takeBack:
#ifdef WITHOUT_TOKEN
		/* Mutation: the guest goes on here because the time is over. */
		if
		:: stage != committed -> goto giveUp
		:: else
		fi;
#endif
		/* HandoverToken.takeBack */
		atomic {
			if
			:: token != taken -> token = takenBack; isTaken = false
			:: else -> isTaken = true
			fi
		};
		if
		:: !isTaken -> goto giveUp
		:: else
		fi;

takeBackLate:
#ifdef TAKEN_FOR_GOOD
		/* Mutation: there is no second word. */
		goto isCommitted;
#endif
#ifdef EXEC
#ifdef PID1
		/* It cannot be ended, so it must have ended what it was at. */
#ifndef PID1_WAITS
		if
		:: stayed -> atomic { if :: useWord == unused -> useWord = givenUp; goto giveUp :: else fi }
		:: else
		fi;
#endif
		goto awaitUse;
#endif
		/* HandoverToken.takeBackUnused */
		atomic { if :: useWord == unused -> useWord = givenUp; goto giveUp :: else fi };
#else
#ifndef STRANGER
		if
		:: !processEnded ->
			atomic { if :: useWord == unused -> useWord = givenUp :: else -> goto awaitUse fi };
#ifndef NOT_ENDED
			killProcess(NEW);
#endif
			goto giveUp
		:: processEnded
		fi;
#endif
#endif

awaitUse:
		do
		:: stage == committed -> goto isCommitted
#ifndef PID1_WAITS
		:: stage != committed && stayed -> break
#endif
		:: stage != committed && nempty(toOld) -> receive()
		:: stage != committed && isEnd ->
#ifndef STRANGER
			/* Or the end of a channel which it closes last. */
#ifdef PID1_WAITS
			processEnded;
#else
			processEnded || stayed;
#endif
#endif
			if
			:: nempty(toOld) -> receive()
			:: empty(toOld)
			fi;
			break
		od;
		if
		:: stage != committed ->
			atomic { if :: useWord == unused -> useWord = givenUp; goto giveUp :: else fi }
		:: else
		fi;
		goto isCommitted;

giveUp:
#ifdef EXEC
stays:
		do
		:: stayed -> break
		:: !stayed && nempty(toOld) -> receive()
		:: !stayed && (isEnd || empty(toOld) || refusal) -> goto isLost /* at once, or a second after a refusal */
		od;
		goto isBack;
isLost:
		/* endForGood, and cbaton_kill_started */
#ifndef PID1
#ifdef WRAPPED
		wrapperEnded = true;
#endif
		killProcess(NEW);
		if
		:: ended[NEW]
		:: true              /* a second is over, and it has not ended yet */
		fi;
#ifndef ANSWER_UNREAD
		do
		:: atomic { nempty(toOld) -> receive() }
		:: empty(toOld) -> break
		od;
#endif
#endif
isBack:
#endif
		closed[OLD] = true;
		/* giveBack */
		standsByWill = false;
		start(OLD);
		/* An error, or CPR_ROLLED_BACK where the new VMM has answered. */
		if
		:: !hasWaited -> answer()
		:: hasWaited
		fi;
		goto theEnd;

isCommitted:
#ifdef TRANSFER
		/* leaveGuest */
		answer();
#endif
		closed[OLD] = true;
		goto gone

	} unless { killed[OLD] };
	/* A process that ends closes what it has. */
gone:
	atomic { runs[OLD] = false; closed[OLD] = true; ended[OLD] = true };
	goto done;
theEnd:
	isOver = true;
	/* The update is over, and the guest is here, or ends here. */
	if
	:: oldIsToEnd -> goto gone
	:: killed[OLD] -> goto gone
	fi;
done:
	skip
}

/* ---- The new VMM: Predecessor, and CprController.load. */

proctype NewVMM() provided (!isStopped || killed[NEW]) {
	bool knowsPredecessor, isMine, wasTold;
	byte loads;

	{
#ifdef TRANSFER
receiveIntroduction:
		do
		:: toNew ? introduction -> break
		:: empty(toNew) && closed[OLD] -> goto ends
		od;
		do
		:: toNew ? descriptors -> break
		:: empty(toNew) && closed[OLD] -> goto giveUp
		od;
#endif
		/* The machine is built. */
		if
		:: true
		:: goto giveUp
		:: goto ends       /* a crash */
		fi;
#ifdef TOKEN_BEFORE_READY
		/* Mutation: the token comes with what the new VMM inherits, and it need not wait. */
		goto load;
#endif
		toOld ! ready;

awaitState:
		do
		:: toNew ? hello -> knowsPredecessor = true
		:: toNew ? end -> goto follow
		:: toNew ? state -> break
		:: empty(toNew) && closed[OLD] -> goto giveUp
		od;
		do
		:: toNew ? descriptors -> break
		:: empty(toNew) && closed[OLD] -> goto giveUp
		od;
		/* takeChanges */
		if
		:: true
		:: goto giveUp
		:: goto ends
		fi;

#ifdef THREE_STEPS
itWaits:
		toOld ! waiting;
		/* MonitorUpdate.machineStands: the client that said cpr-exec is answered. */
		if
		:: !wasTold -> wasTold = true; answer()
		:: wasTold
		fi;
		if
		:: true              /* cpr-load */
		:: goto ending       /* quit, SIGTERM */
		:: true ->           /* nothing any more */
#ifdef UNWATCHED
			killed[NEW]
#else
			(closed[OLD] && token == takenBack) -> goto giveUp /* watchOldVMM */
#endif
		fi;
#endif

load:
		toOld ! loading;
#ifdef COMMIT_BEFORE_CHECKS
		/* Mutation: the guest is taken and used before all of its state is checked. */
		atomic { if :: token == secret -> token = taken; useWord = used :: else -> goto tooLate fi };
#endif
		if
		:: true              /* all is checked, applied, and RAM is writable */
#ifdef THREE_STEPS
		:: loads < MOST_LOADS -> loads++; goto itWaits
#else
		:: goto giveUp
#endif
		:: goto ends
		fi;

commit:
		/* HandoverToken.take */
#ifndef COMMIT_BEFORE_CHECKS
		atomic { if :: token == secret -> token = taken; isMine = true :: else fi };
		if
		:: isMine
		:: else -> goto tooLate
		fi;
#endif
		cpu[NEW] = checkpoint;
		/* announce(.commit): parts act as the owner. A module calls exit(3), or crashes. */
		if
		:: assert(noOtherOwner || !runs[OLD])
		:: goto giveUp
		:: goto ends
		fi;
#ifdef DEVICES_BEFORE_USE
		/* Mutation: devices go on while the old VMM can have the guest back. */
		resumeDevices();
#endif
#ifdef COMMANDS_BEFORE_USE
		/* Mutation: so are the client's next commands carried out, such as quit. */
		if
		:: true
		:: atomic { isToEnd = true; goto ends }
		fi;
#endif

letOldVMMGo:
		/* HandoverToken.use */
#ifndef COMMIT_BEFORE_CHECKS
		atomic { if :: useWord == unused -> useWord = used :: else -> goto tooLate fi };
#endif
		toOld ! committed;
		closed[NEW] = true;
		/* goOn */
		standsByWill = false;
		resumeDevices();
		start(NEW);
#ifdef EXEC
#ifndef THREE_STEPS
		answer();
#endif
#endif
		if
		:: killed[NEW] -> goto ends
		fi;

#ifdef THREE_STEPS
ending:
		/* CprController.ending: the guest ends with this process. */
		/* SIGTERM for the old VMM comes first: whoever of the two has the guest, it ends. */
		atomic {
			isToEnd = true;
#ifndef NOT_PASSED_ON
			oldIsToEnd = true
#endif
		};
		atomic { if :: token == secret -> token = taken :: else -> goto ends fi };
		atomic { if :: useWord == unused -> useWord = used :: else -> goto ends fi };
		toOld ! committed;
		goto ends;
#endif

tooLate:
giveUp:
		refused = true;
		toOld ! failure;
#ifdef EXEC
#ifndef PLACEHOLDER
#ifndef WRAPPED
stay:
		/* Placeholder.hear */
		do
		:: knowsPredecessor -> break
		:: !knowsPredecessor && nempty(toNew) ->
			if
			:: toNew ? hello -> knowsPredecessor = true
			:: toNew ? state -> goto ends
			:: toNew ? descriptors -> goto ends
			:: toNew ? end -> goto ends
			fi
		:: !knowsPredecessor && empty(toNew) && closed[OLD] -> goto ends
		:: !knowsPredecessor && empty(toNew) -> goto ends /* a second is over */
		od;
		isPlaceholder = true;
		toOld ! hasStayed;
		closed[NEW] = true;
		goto placeholder;
#endif
#endif
#endif
		goto ends;

follow:
#ifdef EXEC
#ifndef PLACEHOLDER
#ifndef WRAPPED
		isPlaceholder = true;
		closed[NEW] = true;
placeholder:
		/* placeholder.c: ends as the old VMM does. */
		ended[OLD];
#endif
#endif
#endif
ends:
		skip
	} unless { killed[NEW] };
	atomic {
		if
		:: !killed[NEW] -> refused = true
		:: else
		fi;
		runs[NEW] = false; closed[NEW] = true; ended[NEW] = true;
#ifdef PID1
		/* The namespace ends with its PID 1. */
		killProcess(OLD)
#endif
	}
}

/* ---- Everybody else. */

active proctype Outside() {
	hasBegun;
	do
	:: atomic { !killed[OLD] && !ended[OLD] -> killedFromOutside[OLD] = true; killProcess(OLD) }
	:: atomic { !killed[NEW] && !ended[NEW] && !isPlaceholder -> killedFromOutside[NEW] = true; killProcess(NEW) }
	:: isStopped = true; break
	:: break
	od
}

#ifdef WRAPPED
active proctype Wrapper() {
	if
	:: ended[NEW]
	:: true            /* it is killed, or has started the VMM in the background */
	fi;
	wrapperEnded = true
}
#endif

/* Who has the guest for good. */
#define isNews (useWord == used)
/* The old VMM waits for a new one that has taken the guest and not used it, and that it cannot end. */
#if defined(PID1) || defined(STRANGER)
#define isLimbo (token == taken && useWord == unused && isStopped)
#else
#define isLimbo false
#endif
#ifdef PID1
#define namespaceEnded ended[NEW]
#else
#define namespaceEnded false
#endif

/* When nothing more happens. */
active proctype AtTheEnd() {
	timeout ->
	assert(neverNone || runs[OLD] || runs[NEW] || isToEnd || isLimbo || namespaceEnded
		|| (isNews && (killedFromOutside[NEW] || isStopped))
		|| (!isNews && killedFromOutside[OLD] && (refused || killed[NEW] || isStopped))
		|| (standsByWill && !ended[NEW]));
	/* The old VMM has gone, or goes on. */
	assert(itEnds || isOver || ended[OLD] || isLimbo || (isNews && isStopped) || (standsByWill && !ended[NEW]));
	/* What it has made has gone, too. */
#ifdef EXEC
	assert(nothingStays || !runs[OLD] || ended[NEW] || isPlaceholder || isStopped);
#endif
	assert(nothingStays || !runs[NEW] || ended[OLD]);
	/* A VM that was told to end has not come back. */
	assert(toldToEnd || !isToEnd || killedFromOutside[NEW] || (!runs[OLD] && !runs[NEW]));
	/* Whoever asked has been answered, by CPR_ROLLED_BACK if the new VMM said that it had; or nobody could. */
	assert(answeredOnce || (answers >= 1 && answers <= MOST_ANSWERS) || (hasWaited && isOver) || isToEnd || isLimbo || killedFromOutside[OLD]
		|| killedFromOutside[NEW] || isStopped || namespaceEnded)
}
